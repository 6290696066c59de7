import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from swamp import Mask, MaskError, Plan, Scope, Seed, SparseModel, SwampError, Task, TensorData, Training, cycles
from swamp.pretrained import from_pretrained, save_pretrained
from swamp.training.rng import isolated


@pytest.fixture
def sparse() -> SparseModel:
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    with isolated(Seed(1)):
        model = LlamaForCausalLM(config)
    mask = Mask({name: torch.arange(p.numel()).view(p.shape) % 4 == 0 for name, p in Mask.ones(model).items()})
    mask.apply_(model)
    return SparseModel(model, mask, ())


def test_a_model_comes_back_bit_for_bit_with_its_mask(sparse, tmp_path):
    save_pretrained(sparse, tmp_path / "x", method="imp")
    again = from_pretrained(tmp_path / "x")
    assert again.mask == sparse.mask
    assert again.sparsity == pytest.approx(0.75)
    state, expected = again.model.state_dict(), sparse.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert type(again.model) is LlamaForCausalLM


def test_transformers_alone_reads_it_and_finds_the_same_zeros(sparse, tmp_path):
    save_pretrained(sparse, tmp_path / "x", method="imp")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    assert Mask.from_zeros(plain, Scope()) == sparse.mask
    tokens = torch.arange(6)[None]
    assert torch.equal(plain(tokens).logits, sparse.model.eval()(tokens).logits)


def test_the_card_states_density_method_accuracy_and_cost(sparse, tmp_path):
    model = nn.Linear(4, 2)
    data = TensorData(torch.randn(16, 4), torch.arange(16) % 2)
    plan = Plan(sparsity=0.5, cycles=1, particles=(1,), method="imp")
    record = tuple(cycles(model, Task(data, data), plan, Training(epochs=2, batch_size=8), backend="sequential"))
    save_pretrained(replace(sparse, cycles=record), tmp_path / "x", method="imp")
    card = (tmp_path / "x" / "README.md").read_text()
    last, density = record[-1], sparse.mask.density_of_all(sparse.model)
    for line in (
        "| density of the prunable weights | 0.2500 (sparsity 0.7500) |",
        f"| density of all parameters | {density:.4f} |",
        "| method | imp |",
        f"| accuracy, test data | {last.metrics.test['accuracy']:.4f} |",
        f"{last.total.steps} steps, {last.total.samples} examples",
    ):
        assert line in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_a_revived_weight_is_refused_before_anything_is_written(sparse, tmp_path):
    with torch.no_grad():
        sparse.model.model.layers[0].mlp.up_proj.weight.fill_(1)
    with pytest.raises(MaskError, match=r"up_proj\.weight' are not zero"):
        save_pretrained(sparse, tmp_path / "x", method="imp")
    assert not [*tmp_path.iterdir()]


def test_a_revived_weight_in_the_file_is_refused(sparse, tmp_path):
    save_pretrained(sparse, tmp_path / "x", method="imp")
    file = tmp_path / "x" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(MaskError, match=r"up_proj\.weight' are not zero"):
        from_pretrained(tmp_path / "x")


def _config(**fields: Any) -> Any:
    def spoil(folder: Any) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_config(auto_map={"AutoModel": "evil.Model"}), "Code in a model folder is never run"),
        (_config(architectures=["EvilModel"]), "Code in a model folder is never run"),
        (_config(architectures=["Trainer"]), "Code in a model folder is never run"),
        (_config(architectures=None), "is not a model saved by swamp"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not a model saved by swamp"),
        (lambda folder: (folder / "mask.safetensors").unlink(), "does not exist"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), "cannot be read as a LlamaForCausalLM"),
    ],
)
def test_a_folder_that_is_not_whole_or_brings_code_is_refused(spoil, message, sparse, tmp_path):
    save_pretrained(sparse, tmp_path / "x", method="imp")
    spoil(tmp_path / "x")
    with pytest.raises(SwampError, match=message):
        from_pretrained(tmp_path / "x")


def test_a_folder_that_holds_something_is_refused(sparse, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").touch()
    with pytest.raises(SwampError, match="is not empty"):
        save_pretrained(sparse, tmp_path / "x", method="imp")


def test_the_mask_of_another_model_is_refused(sparse, tmp_path):
    save_pretrained(sparse, tmp_path / "x", method="imp")
    Mask({"other": torch.ones(2, dtype=torch.bool)}).save(tmp_path / "x" / "mask.safetensors")
    with pytest.raises(MaskError, match="the mask names 'other'"):
        from_pretrained(tmp_path / "x")
