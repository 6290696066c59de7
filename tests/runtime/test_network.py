"""Exported networks as modules: results, refusals, fallback ops, threads, and machines without a compiler."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from swamp.errors import MaskError, SwampError
from swamp.files import digest
from swamp.masks import Mask
from swamp.runtime import kernels, network
from swamp.runtime.network import SparseNetwork
from swamp.runtime.rewrite import fold_batchnorm
from swamp.runtime.tracing import bake_mask, trace

from .networks import built, images, numbers


@pytest.fixture
def model() -> nn.Module:
    return built(images, 0.8)


@pytest.fixture
def program(model):
    return trace(bake_mask(model), numbers(2, 1, 8, 8))


def test_outputs_equal_those_of_the_network_at_any_batch_size(model, program):
    module = SparseNetwork(program, batch=(1, 16))
    assert sorted(module.tuned) == [1, 16]
    assert all({"dense", "kernels, blocks of 1"} <= set(tuned.seconds) for tuned in module.tuned.values())
    assert module.fallback_ops == []
    assert repr(module).splitlines()[0] == "SparseNetwork(input (batch, 1, 8, 8)): 0 of 5 operations in torch"
    assert "  batch 16: " in repr(module)
    with torch.no_grad():
        for size in (1, 2, 16, 40):
            assert torch.allclose(module(numbers(size, 1, 8, 8)), model(numbers(size, 1, 8, 8)), atol=1e-4)


def test_baking_a_mask_changes_a_copy_and_not_the_model():
    model = built(images, 0).train()
    mask = Mask({"0.weight": torch.rand(8, 1, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5})
    before, modes = digest(model.state_dict()), [module.training for module in model.modules()]
    final = bake_mask(model, mask)
    mask.require_zeros(final.state_dict())
    outputs = SparseNetwork(trace(final, numbers(2, 1, 8, 8)), batch=3)(numbers(3, 1, 8, 8))
    assert digest(model.state_dict()) == before
    assert [module.training for module in model.modules()] == modes
    with torch.no_grad():
        assert torch.allclose(outputs, final(numbers(3, 1, 8, 8)), atol=1e-4)
    fold_batchnorm(trace(final, numbers(2, 1, 8, 8)))
    assert digest(final.state_dict()) != before


def test_zeros_outside_the_mask_are_reported(model):
    with pytest.raises(MaskError, match="does not have"):
        bake_mask(model, Mask({"nothing": torch.ones(2, dtype=torch.bool)}))
    with pytest.warns(UserWarning, match=r"some weights of 6\.weight are zero although the mask keeps them"):
        bake_mask(model, Mask({"6.weight": torch.ones(5, 128, dtype=torch.bool)}))


def test_inputs_of_another_shape_dtype_or_number_are_refused(program):
    module = SparseNetwork(program, batch=2)
    for wrong in (numbers(2, 1, 8, 9), numbers(2, 8, 8), numbers(2, 1, 8, 8).double(), "text"):
        with pytest.raises(SwampError, match=r"takes|must be a tensor"):
            module(wrong)
    with pytest.raises(SwampError, match=r"takes 1 arguments \(input\), got 2"):
        module(numbers(2, 1, 8, 8), numbers(2, 1, 8, 8))
    with pytest.raises(SwampError, match="computes no gradients"):
        module(numbers(2, 1, 8, 8).requires_grad_())
    with pytest.raises(SwampError, match="1 or more"):
        SparseNetwork(program, batch=0)


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).sort(1).values.cumsum(1))


class Deciding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_operators_that_the_kernels_do_not_support_run_in_torch_and_are_listed():
    model = built(Sorted, 0.5)
    module = SparseNetwork(trace(model, numbers(2, 4)), batch=2)
    assert module.fallback_ops == ["the model: sort.default", "the model: cumsum.default"]
    with torch.no_grad():
        assert torch.allclose(module(numbers(7, 4)), model(numbers(7, 4)), atol=1e-5)
    with pytest.raises(SwampError, match=r"torch\.export cannot follow Deciding"):
        trace(Deciding(), numbers(2, 4))


def test_without_a_compiler_a_warning_is_issued_and_torch_executes(model, program, monkeypatch):
    monkeypatch.setenv("CC", "none")
    kernels.kernel_library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no C compiler"):
            module = SparseNetwork(program, batch=2)
    finally:
        kernels.kernel_library.cache_clear()
    assert set(module.tuned[2].seconds) == {"dense", "csr"}
    with torch.no_grad():
        assert torch.allclose(module(numbers(4, 1, 8, 8)), model(numbers(4, 1, 8, 8)), atol=1e-5)


def test_threads_can_call_a_network_at_the_same_time(model, program):
    module = SparseNetwork(program, batch=4)
    inputs = [numbers(4, 1, 8, 8, seed=seed) for seed in range(20)]
    with torch.no_grad():
        expected = [model(one) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        for outputs, one in zip(pool.map(module, inputs), expected, strict=True):
            assert torch.allclose(outputs, one, atol=1e-4)


def test_the_same_method_is_chosen_whatever_else_the_machine_does(monkeypatch):
    monkeypatch.setattr(network, "_seconds", lambda call: call())
    for seed in range(20):
        rng = random.Random(seed)

        def busy(seconds: float, rng=rng):
            return lambda inputs: seconds * (1 + rng.expovariate(2))

        executors = {name: busy(float(name)) for name in ("1.3", "2", "1", "1.15", "5")}
        assert network._choice(network._least_seconds(executors, ()), executors) == "1"
    assert network._choice({"default": 1.02, "other": 1.0, "slow": 2.0}, ["slow", "default", "other"]) == "default"
