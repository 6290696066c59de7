"""Networks of transformers with small random configurations, called as their documentation calls them."""

from collections.abc import Callable
from typing import Any

from torch import nn

import swamp
from entry import Entry, images, integers, own_loss, random

_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_IDS = integers(40, 8, 10, seed=3) + 2


def _made(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config)(**options))

    return make


def _classifier() -> swamp.Task:
    return own_loss({"input_ids": _IDS, "labels": integers(2, 8)})


def _language() -> swamp.Task:
    return own_loss({"input_ids": _IDS, "labels": _IDS})


def _whisper() -> swamp.Task:
    return own_loss({"input_features": random(8, 8, 20), "labels": _IDS[:, :5]})


def _pairs() -> swamp.Task:
    inputs = {"input_ids": _IDS, "pixel_values": random(8, 3, 16, 16)}

    def loss(model: nn.Module, batch: Any) -> Any:
        return model(**batch, return_loss=True).loss

    return swamp.Task.custom(inputs, loss, lambda model: {"loss": loss(model, inputs)})


def _clip() -> nn.Module:
    import transformers

    text = {**_SMALL, "vocab_size": 50, "max_position_embeddings": 16, "projection_dim": 8, "eos_token_id": 1}
    vision = {**_SMALL, "image_size": 16, "patch_size": 8, "projection_dim": 8}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


_VOCABULARY = {"vocab_size": 50}
_CAUSAL = {**_SMALL, **_VOCABULARY, "num_key_value_heads": 2}
_ENTRIES: tuple[tuple[str, Callable[[], nn.Module], Callable[[], swamp.Task]], ...] = (
    ("BERT", _made("BertForSequenceClassification", "BertConfig", **_SMALL, **_VOCABULARY), _classifier),
    ("RoBERTa", _made("RobertaForSequenceClassification", "RobertaConfig", **_SMALL, **_VOCABULARY), _classifier),
    ("DistilBERT", _made("DistilBertForSequenceClassification", "DistilBertConfig", dim=16, n_layers=2, n_heads=2,
                         hidden_dim=32, **_VOCABULARY), _classifier),
    ("GPT-2", _made("GPT2LMHeadModel", "GPT2Config", n_embd=16, n_layer=2, n_head=2, **_VOCABULARY), _language),
    ("Llama", _made("LlamaForCausalLM", "LlamaConfig", **_CAUSAL), _language),
    ("Qwen2", _made("Qwen2ForCausalLM", "Qwen2Config", **_CAUSAL), _language),
    ("Mixtral", _made("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, **_CAUSAL), _language),
    ("Mamba", _made("MambaForCausalLM", "MambaConfig", hidden_size=16, num_hidden_layers=2, state_size=4,
                    **_VOCABULARY), _language),
    ("T5", _made("T5ForConditionalGeneration", "T5Config", d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                 decoder_start_token_id=0, **_VOCABULARY), _language),
    ("BART", _made("BartForConditionalGeneration", "BartConfig", d_model=16, encoder_layers=1, decoder_layers=1,
                   encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
                   **_VOCABULARY), _language),
    ("Whisper", _made("WhisperForConditionalGeneration", "WhisperConfig", d_model=16, encoder_layers=1,
                      decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                      decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=10, pad_token_id=0,
                      decoder_start_token_id=1, **_VOCABULARY), _whisper),
    ("CLIP", _clip, _pairs),
)  # fmt: skip
ENTRIES = (
    *(
        Entry(name, "transformers", model, task, how="Task.custom, the model's own loss")
        for name, model, task in _ENTRIES
    ),
    Entry(
        "ViT",
        "transformers",
        _made("ViTForImageClassification", "ViTConfig", image_size=32, patch_size=8, num_labels=4, **_SMALL),
        images,
    ),
)
