"""LoRA on a sparse base, with the real library."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from swamp import Mask, SwampError, hold
from swamp.integrations.peft import adapter_mask, masked_adapters, merge

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")]

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
TOKENS = torch.randint(0, 40, (4, 6), generator=torch.Generator().manual_seed(0))


def half(model: nn.Module) -> Mask:
    generator = torch.Generator().manual_seed(1)
    return Mask({name: torch.rand(t.shape, generator=generator) < 0.5 for name, t in Mask.ones(model).items()})


def perceptron() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16, bos_token_id=None, eos_token_id=None
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config)


def sparse(model: nn.Module) -> tuple[nn.Module, Mask]:
    mask = half(model)
    mask.apply_(model)
    return model, mask


def adapted(model: nn.Module, targets: list[str], **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, **options))


def train(model: nn.Module, loss: Any, steps: int = 5) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def factors(model: nn.Module) -> list[torch.Tensor]:
    return [value.detach() for name, value in model.named_parameters() if "lora_B" in name]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_adapters_train_and_the_merge_keeps_the_zeros_and_computes_what_was_trained(dropout: float) -> None:
    base, mask = sparse(perceptron())
    before = copy.deepcopy(base.state_dict())
    model = adapted(base, ["0", "2"], lora_dropout=dropout)
    with masked_adapters(model, mask):
        train(model, lambda: F.cross_entropy(model(X), Y))
        outputs = model.eval()(X)
    assert all(factor.any() for factor in factors(model))
    merged = merge(model, mask)
    assert torch.allclose(merged(X), outputs, atol=1e-5)
    assert list(merged.state_dict()) == list(before)
    for name, active in mask.items():
        weight = merged.get_parameter(name)
        assert not weight[~active].any()
        assert not weight[~active].signbit().any()
    assert (merged.get_parameter("0.weight") != before["0.weight"])[mask["0.weight"]].any()


def test_the_layers_of_gpt_2_are_adapted_too() -> None:
    base, mask = sparse(gpt2())
    model = adapted(base, ["c_attn", "c_fc"], fan_in_fan_out=True)
    with masked_adapters(model):  # by default the zeros of the base
        train(model, lambda: model(TOKENS, labels=TOKENS).loss, steps=3)
        outputs = model.eval()(TOKENS).logits
    merged = merge(model)
    assert torch.allclose(merged.eval()(TOKENS).logits, outputs, atol=1e-4)
    mask.require_zeros(dict(merged.named_parameters()))
    assert Mask.from_zeros(merged)["transformer.h.0.attn.c_attn.weight"].equal(
        mask["transformer.h.0.attn.c_attn.weight"]
    )


def test_a_plain_merge_would_lose_the_zeros_and_a_cut_is_warned_of() -> None:
    base, mask = sparse(perceptron())
    model = adapted(base, ["0"])
    train(model, lambda: F.cross_entropy(model(X), Y))
    plain = copy.deepcopy(model).merge_and_unload()
    assert plain.get_parameter("0.weight")[~mask["0.weight"]].any()
    with pytest.warns(UserWarning, match=r"change pruned weights by .* which this merge cuts"):
        merged = merge(model, mask)
    mask.require_zeros(dict(merged.named_parameters()))


def test_hooks_are_gone_after_the_block() -> None:
    base, mask = sparse(perceptron())
    model = adapted(base, ["0"])
    before = model(X)
    with masked_adapters(model, mask):
        pass
    assert torch.equal(model(X), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_from_zeros_of_a_model_with_adapters_lets_the_second_factors_train() -> None:
    base, mask = sparse(perceptron())
    model = adapted(base, ["0", "2"], modules_to_save=["4"])
    with pytest.warns(UserWarning, match=r"lora_B.*count as initialised to zero"):
        found = Mask.from_zeros(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    with hold(model, found, optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
    assert all(factor.any() for factor in factors(model))
    own = model.get_base_model()[4].modules_to_save["default"].weight
    assert not own[~mask["4.weight"]].any()
    assert own[mask["4.weight"]].any()
    assert list(adapter_mask(model, mask)) == [
        "base_model.model.0.base_layer.weight",
        "base_model.model.2.base_layer.weight",
        "base_model.model.4.modules_to_save.default.weight",
    ]
    with masked_adapters(model, mask):
        outputs = model(X)
    merged = merge(model, mask)
    assert torch.allclose(merged(X), outputs, atol=1e-5)
    mask.require_zeros(dict(merged.named_parameters()))


def test_what_cannot_be_masked_is_refused_before_training() -> None:
    base, mask = sparse(perceptron())
    with pytest.raises(SwampError, match="Sequential is not a PEFT model"):
        adapter_mask(base, mask)
    with pytest.raises(SwampError, match="has no zeros to keep"):
        adapter_mask(adapted(perceptron(), ["0"]))
    with pytest.raises(SwampError, match=r"the mask names 'other', which the base model does not have"):
        adapter_mask(adapted(perceptron(), ["0"]), Mask({"other": torch.ones(2, dtype=torch.bool)}))
    dora = adapted(base, ["0"], use_dora=True)
    with pytest.raises(SwampError, match=r"'base_model.model.0' .* is not a plain LoRA"), masked_adapters(dora, mask):
        pass


def test_what_would_not_be_masked_inside_the_block_is_refused() -> None:
    base, mask = sparse(perceptron())
    model = adapted(base, ["0"])
    model.eval()
    with masked_adapters(model, mask):
        before = model(X)
        model.merge_adapter()
        with pytest.raises(SwampError, match=r"merged inside masked_adapters.*merge\(model, mask\)"):
            model(X)
        model.unmerge_adapter()
        model.add_adapter("third", peft.LoraConfig(r=2, target_modules=["0"]))
        torch.testing.assert_close(model(X), before)
        model.set_adapter("third")
        with pytest.raises(SwampError, match="the adapter 'third' was added inside masked_adapters"):
            model(X)
        for names in (["default"] * 32, ["third"] + ["__base__"] * 31):
            with pytest.raises(SwampError, match="adapter_names mixes several adapters in a batch"):
                model(X, adapter_names=names)
