"""Dead units are removed, and outputs stay equal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swamp.datasets import build_network
from swamp.runtime.dense import DenseNetwork
from swamp.runtime.rewrite import fold_batchnorm, remove_dead_units
from swamp.runtime.tracing import trace

from .networks import built, numbers, run, traced


def test_unread_and_constant_units_are_removed_and_the_constants_move_into_the_bias():
    model = built(lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), 0)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2], [0, 0], [3, 4], [0, 0]]))
        model[0].bias.copy_(torch.tensor([0.5, 3, 0.5, -3]))
        model[2].weight.copy_(torch.tensor([[1.0, 2, 0, 5]]))
        model[2].bias.fill_(10)
    program = remove_dead_units(fold_batchnorm(trace(model, numbers(2, 2))))
    assert program.tensors["0.weight"].tolist() == [[1, 2]]
    assert program.tensors["2.weight"].tolist() == [[1]]
    # 10, and relu(3) times 2; the last unit is relu(-3) = 0.
    assert program.tensors["2.weight.compact_bias"].tolist() == [16]
    with torch.no_grad():
        assert torch.allclose(DenseNetwork(program)(numbers(5, 2)), model(numbers(5, 2)), atol=1e-6)


class Products(nn.Module):
    """Matrices that are stored as (inputs, outputs), and positions that depend on no input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 3))
        self.bias, self.places = nn.Parameter(torch.randn(6)), nn.Embedding(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.addmm(self.bias, x.reshape(-1, 4), self.one).relu().reshape(-1, 5, 6)
        return y @ self.two + self.places(torch.arange(5))


def test_products_with_constant_matrices_become_linear_layers_and_constants_are_computed_once():
    model = built(Products, 0.5)
    program = fold_batchnorm(trace(model, numbers(3, 5, 4)))
    assert [node.op for node in program.nodes if "size" not in node.op and "operator" not in node.target] == [
        *("reshape", "linear", "relu", "reshape", "linear", "add"),
    ]
    assert torch.equal(
        program.tensors["linear.matrix" if "linear.matrix" in program.tensors else "addmm.matrix"], model.one.T
    )
    with torch.no_grad():
        for size in (1, 4):
            expected = model(numbers(size, 5, 4))
            assert torch.allclose(DenseNetwork(program)(numbers(size, 5, 4)), expected, atol=1e-5)


class Reparametrised(nn.Module):
    """A layer whose weight is computed, before a BatchNorm that cannot be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.direction, self.norm = nn.Parameter(torch.randn(4, 3)), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(nn.functional.linear(x, self.direction * x.mean()))


def test_a_layer_with_a_computed_weight_keeps_its_norm():
    model = built(Reparametrised, 0)
    program = fold_batchnorm(trace(model, numbers(3, 3)))
    assert "batch_norm" in [node.op for node in program.nodes]
    with torch.no_grad():
        assert torch.allclose(DenseNetwork(program)(numbers(3, 3)), model(numbers(3, 3)), atol=1e-5)


class Kept(nn.Module):
    """A residual connection, with units that several operators read."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x + self.two(torch.relu(self.one(x))))


@pytest.mark.slow
@given(st.integers(0, 20), st.sampled_from([0, 1]), st.sampled_from([0.7, 0.9, 0.97]))
@settings(max_examples=12)
def test_removing_dead_units_leaves_the_outputs_equal(seed, padding, sparsity):
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=padding),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * (2 + 2 * padding) ** 2, 12),
            nn.GELU(),
            nn.Linear(12, 3),
        )

    model = built(make, sparsity, seed)
    before = fold_batchnorm(traced(model, numbers(2, 1, 8, 8)))
    after = remove_dead_units(before)
    assert sum(t.numel() for t in after.tensors.values()) <= sum(t.numel() for t in before.tensors.values()) + 15
    with torch.no_grad():
        expected = model(numbers(4, 1, 8, 8))
        assert torch.allclose(DenseNetwork(after)(numbers(4, 1, 8, 8)), expected, atol=1e-5)
    assert torch.allclose(run(after, numbers(4, 1, 8, 8), 16), expected, atol=1e-4)


@pytest.mark.parametrize("make", [Kept, lambda: build_network("resnet-8", (1, 12, 12), 3)])
def test_units_at_residual_connections_stay(make):
    model = built(make, 0.97)
    inputs = numbers(3, 4) if make is Kept else numbers(3, 1, 12, 12)
    program = remove_dead_units(fold_batchnorm(trace(model, inputs)))
    with torch.no_grad():
        expected = model(inputs)
        assert (DenseNetwork(program)(inputs) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


class Tokens(nn.Module):
    """Linear layers on tokens with as many tokens as features, so that confusing them would not be an error."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.reader = reader
        self.one, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.flat, self.conv, self.last = nn.Linear(36, 3), nn.Conv1d(6, 4, 3, bias=False), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.one(x)) if self.reader == "norm" else torch.relu(self.one(x))
        if self.reader == "flatten":
            return self.flat(y.flatten(1))
        if self.reader == "conv1d":
            return self.conv(y)
        return self.last(y.mean(-1)) if self.reader == "mean" else self.last(y)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("reader", ["norm", "flatten", "conv1d", "mean", "linear"])
def test_dead_features_of_tokens(reader):
    model = built(lambda: Tokens(reader), 0.3)
    with torch.no_grad():
        model.one.weight[2] = 0
        model.one.bias[2] = 3
        program = remove_dead_units(fold_batchnorm(trace(model, numbers(4, 6, 6))))
        expected = model(numbers(4, 6, 6))
        assert torch.allclose(DenseNetwork(program)(numbers(4, 6, 6)), expected, atol=1e-5)
        assert torch.allclose(run(program, numbers(4, 6, 6), 16), expected, atol=1e-4)


class OneImage(nn.Module):
    """A convolution over an image without a batch dimension: the channels come first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.conv(x.mean(0))).flatten(1))


def test_an_image_without_a_batch_dimension():
    model = built(OneImage, 0.3)
    with torch.no_grad():
        model.conv.weight[2] = 0
        program = remove_dead_units(fold_batchnorm(trace(model, numbers(5, 4, 4, 6))))
        assert torch.allclose(run(program, numbers(5, 4, 4, 6), 16), model(numbers(5, 4, 4, 6)), atol=1e-5)


def test_a_norm_over_the_rows_of_an_image_is_not_folded_into_its_convolution():
    model = built(lambda: nn.Sequential(nn.Conv2d(4, 9, 3, padding=1), nn.BatchNorm1d(9)), 0.3)
    program = fold_batchnorm(trace(model, numbers(4, 9, 6)))
    with torch.no_grad():
        assert torch.allclose(DenseNetwork(program)(numbers(4, 9, 6)), model(numbers(4, 9, 6)), atol=1e-5)


class Masked(nn.Module):
    """Attention with a constant mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, self.mask.expand(len(x), 1, 5, 5))


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
@pytest.mark.parametrize("hides", [False, True])
def test_an_attention_mask_that_hides_nothing_is_removed(kind, hides):
    visible = torch.ones(1, 1, 5, 5).tril() if hides else torch.ones(1, 1, 5, 5)
    model, inputs = Masked(visible.bool() if kind is torch.bool else 1 - visible), numbers(3, 2, 5, 4)
    program = fold_batchnorm(trace(model, inputs))
    (attention,) = [node for node in program.nodes if node.op == "scaled_dot_product_attention"]
    assert (attention.args[3] is None) != hides
    assert torch.allclose(DenseNetwork(program)(inputs), model(inputs), atol=1e-6)
