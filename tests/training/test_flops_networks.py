"""FLOPs of whole networks equal those of torch's FlopCounterMode, and reach every matrix that a product uses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from swamp.masks import Mask
from swamp.models.networks import resnet
from swamp.training import Task
from swamp.training.flop_trace import decomposed, trace_flops
from swamp.training.flops import FlopCounter

IDS = torch.arange(32).view(2, 16) % 50
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 50,
}
IMAGES: dict[str, Any] = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2}
IMAGES |= {"num_attention_heads": 2, "intermediate_size": 64}
SEQ2SEQ = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
SEQ2SEQ |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 50}
SEQ2SEQ |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def text(kind: str, config: str, **options: Any) -> Callable[[Any], tuple[nn.Module, dict[str, Any]]]:
    return lambda t: (getattr(t, kind)(getattr(t, config)(**{**SMALL, **options})), {"input_ids": IDS})


GPT2 = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "vocab_size": 50,
    "n_positions": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NETWORKS: dict[str, Callable[[Any], tuple[nn.Module, dict[str, Any]]]] = {
    "bert": text("BertModel", "BertConfig"),
    "roberta": text("RobertaForSequenceClassification", "RobertaConfig"),
    "distilbert": lambda t: (
        t.DistilBertModel(t.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=50)),
        {"input_ids": IDS},
    ),
    "gpt2": lambda t: (t.GPT2LMHeadModel(t.GPT2Config(**GPT2)), {"input_ids": IDS}),
    "llama": text("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=1),
    "mistral": text("MistralForCausalLM", "MistralConfig", num_key_value_heads=1),
    "mixtral": text("MixtralForCausalLM", "MixtralConfig", num_key_value_heads=1, num_local_experts=4),
    "mamba": lambda t: (
        t.MambaForCausalLM(t.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50, state_size=4)),
        {"input_ids": IDS},
    ),
    "t5": lambda t: (
        t.T5ForConditionalGeneration(
            t.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=50, decoder_start_token_id=0)
        ),
        {"input_ids": IDS, "decoder_input_ids": IDS},
    ),
    "bart": lambda t: (
        t.BartForConditionalGeneration(t.BartConfig(**SEQ2SEQ, max_position_embeddings=20)),
        {"input_ids": IDS, "decoder_input_ids": IDS},
    ),
    "whisper": lambda t: (
        t.WhisperForConditionalGeneration(
            t.WhisperConfig(**SEQ2SEQ, num_mel_bins=8, max_source_positions=10, max_target_positions=16)
        ),
        {"input_features": torch.ones(2, 8, 20), "decoder_input_ids": IDS},
    ),
    "vit": lambda t: (t.ViTForImageClassification(t.ViTConfig(**IMAGES)), {"pixel_values": torch.ones(2, 3, 16, 16)}),
    "convnext": lambda t: (
        t.ConvNextForImageClassification(t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        {"pixel_values": torch.ones(2, 3, 32, 32)},
    ),
    "resnet of transformers": lambda t: (
        t.ResNetForImageClassification(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        {"pixel_values": torch.ones(2, 3, 32, 32)},
    ),
    "clip": lambda t: (
        t.CLIPModel(t.CLIPConfig(text_config={**SMALL, "eos_token_id": 2}, vision_config=IMAGES, projection_dim=16)),
        {"input_ids": IDS, "pixel_values": torch.ones(2, 3, 16, 16)},
    ),
    "resnet-20": lambda t: (resnet((3, 16, 16), 10, 20), {"x": torch.ones(2, 3, 16, 16)}),
    "lstm": lambda t: (nn.LSTM(6, 8, 2, bidirectional=True), {"input": torch.ones(5, 2, 6)}),
    "gru": lambda t: (nn.GRU(6, 8), {"input": torch.ones(5, 2, 6)}),
    "transformer": lambda t: (
        nn.Transformer(16, 2, 1, 1, 32, batch_first=True),
        {"src": torch.ones(2, 5, 16), "tgt": torch.ones(2, 3, 16)},
    ),
}
UNUSED = ("embed", "A_log", "wpe", "relative_attention_bias", "cls_token", "position", "shared", "layer_scale")
"""Parts of names of tensors that no product uses: they are looked up, added or multiplied elementwise."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_flops_are_those_of_torchs_counter(name: str):
    torch.manual_seed(0)
    model, inputs = NETWORKS[name](pytest.importorskip("transformers"))
    if name == "mixtral":
        # torch's counter does not know the grouped product of experts.
        model.config._experts_implementation = "eager"
    model.eval()
    call = (lambda: model(*inputs.values())) if "input" in inputs or "x" in inputs else (lambda: model(**inputs))
    with torch.no_grad(), decomposed(), FlopCounterMode(display=False) as counter:
        call()
    total, uses = trace_flops(model, call)
    assert total == counter.get_total_flops() > 0
    dense = sum(
        2 * float(times.sum()) * (1 if times.dim() else model.get_parameter(n).numel()) for n, times in uses.items()
    )
    assert 0 < dense <= total
    matrices = [n for n, weight in model.named_parameters() if weight.dim() > 1]
    assert not [n for n in matrices if n not in uses and not any(part in n for part in UNUSED)]
    prunable = Mask.ones(model)
    assert [n for n in prunable if n not in uses] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_products_of_experts_count_the_rows_that_each_expert_was_given():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, inputs = NETWORKS["mixtral"](transformers)
    model.eval()
    found = {}
    for implementation in ("eager", "grouped_mm"):
        model.config._experts_implementation = implementation
        found[implementation] = trace_flops(model, lambda: model(**inputs))
    assert found["eager"][0] == found["grouped_mm"][0]
    for name, times in found["eager"][1].items():
        other = found["grouped_mm"][1][name]
        assert torch.allclose(times.expand(other.shape) if other.dim() else times, other.expand(times.shape)), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_without_its_pruned_weights_gpt2_costs_what_is_left():
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    task = Task.of(train=({"input_ids": IDS}, IDS), test=({"input_ids": IDS}, IDS))
    flops, dense = FlopCounter.of(model, task), Mask.ones(model)
    nothing = Mask({name: torch.zeros_like(active) for name, active in dense.items()})
    assert flops.forward(None) - flops.forward(nothing) == 2 * 16 * dense.prunable
