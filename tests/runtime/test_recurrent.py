"""Recurrent layers become steps that the kernels execute, with the outputs of torch."""

import dataclasses

import pytest
import torch
from torch import nn

from swamp.runtime import recurrent
from swamp.runtime.checks import difference
from swamp.runtime.dense import DenseNetwork
from swamp.runtime.kernels import KernelConfig, KernelExecutor
from swamp.runtime.program import Program
from swamp.runtime.recurrent import unroll_recurrences
from swamp.runtime.regions import fallback_ops
from swamp.runtime.rewrite import fold_batchnorm, remove_dead_units
from swamp.runtime.tracing import trace

from .networks import assert_same, built, numbers

KINDS = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


class Net(nn.Module):
    """Reads all outputs of a recurrent layer."""

    def __init__(self, kind: str, **options: bool | int) -> None:
        super().__init__()
        self.layer = KINDS[kind](5, 6, **options)
        self.head = nn.Linear(self.layer(torch.zeros(1, 1, 5))[0].shape[-1], 3)

    def forward(self, x):
        outputs, last = self.layer(x)
        return self.head(outputs), last


def traced(model: nn.Module, x: torch.Tensor) -> tuple[Program, Program]:
    """The program as it is, and with its recurrent layers unrolled."""
    axis = 0 if model.layer.batch_first else 1  # pyright: ignore
    program = remove_dead_units(fold_batchnorm(trace(model, x, dynamic={"x": {axis: "batch"}})))
    return program, unroll_recurrences(program)


def agrees(model: nn.Module, program: Program, *inputs: torch.Tensor) -> None:
    expected = model(*inputs)
    assert difference(DenseNetwork(program).execute(inputs), expected) < 1e-5
    for block in (1, 16):
        assert difference(KernelExecutor(program, KernelConfig(block))(inputs), expected) < 1e-5


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"batch_first": True},
        {"bias": False},
        {"bidirectional": True, "num_layers": 2, "batch_first": True},
    ],
    ids=str,
)
def test_every_kind_of_recurrent_layer_equals_torch(kind, options):
    model = built(lambda: Net(kind, **options), 0.5)
    x = numbers(3, 4, 5)
    whole, program = traced(model, x)
    layer = next(node.name for node in whole.nodes if node.target.endswith(".input"))
    assert layer not in program.node_by_name
    assert {text.rpartition(": ")[2] for text in fallback_ops(program)} <= {
        *("zeros.default", "select.int", "reshape.default", "transpose.int", "stack.default"),
    }
    agrees(model, program, numbers(21, 4, 5) if options.get("batch_first") else numbers(3, 21, 5))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_given_state_is_read(kind):
    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = KINDS[kind](5, 6, batch_first=True)

        def forward(self, x, first):
            state = (first, 2 * first) if kind == "LSTM" else first
            return self.layer(x, state)[1]

    model = built(Started, 0.5)
    inputs = numbers(3, 4, 5), numbers(1, 3, 6)
    program = trace(model, inputs, dynamic={"x": {0: "batch"}, "first": {1: "batch"}})
    program = unroll_recurrences(fold_batchnorm(program))
    assert "lstm" not in program.node_by_name
    agrees(model, program, *inputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_what_cannot_be_unrolled_stays_whole(monkeypatch):
    whole, program = traced(built(lambda: Net("LSTM", proj_size=3), 0.5), numbers(4, 3, 5))
    assert program is whole
    whole, program = traced(built(lambda: Net("LSTM", batch_first=True), 0.5), numbers(2, 4, 5))
    assert program is not whole
    excluded = dataclasses.replace(whole, in_torch=frozenset({"lstm"}))
    assert unroll_recurrences(excluded) is excluded
    monkeypatch.setattr(recurrent, "_MOST_STEPS", 3)
    assert unroll_recurrences(whole) is whole


@pytest.mark.slow
def test_the_steps_of_a_layer_share_their_tables():
    _, program = traced(built(lambda: Net("LSTM", batch_first=True), 0.5), numbers(2, 40, 5))
    executor = KernelExecutor(program, KernelConfig(16))
    executor(program.example_inputs(16))
    steps = max(executor.regions, key=lambda region: len(region.lowered.steps)).lowered
    assert len(steps.steps) > 9 * 40
    assert len(steps.pinned) < 60


class Channels(nn.Module):
    """Parts of the channels, joined in another order, gated by each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.head, self.last = nn.Linear(4 * 25, 12), nn.Linear(13, 2)

    def forward(self, x):
        y = self.one(x)
        a, b, c = y[:, :3], torch.relu(y[:, 3:8]), y[:, -2:]
        y = self.two(torch.cat([b, a], 1)) * c.mean(1, keepdim=True).expand(-1, 4, -1, -1)
        z = self.head(y.flatten(1))
        return self.last(torch.cat([z[:, :5] * z[:, 5:10], torch.tanh(z[:, 10:]), z[:, 4:10]], 1))


@pytest.mark.parametrize("block", [1, 3, 16])
def test_parts_of_channels_and_their_concatenation(block):
    assert_same(built(Channels, 0.3), numbers(18, 3, 5, 5), block)


class Empty(nn.Module):
    """A concatenation with a part that has no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.one(x)
        return self.two(torch.cat([y[:, 4:], y, x[:, :0]], 1))


@pytest.mark.slow
def test_a_part_without_channels_is_left_to_torch():
    model = built(Empty, 0.3)
    program = fold_batchnorm(trace(model, numbers(2, 3, 4, 4)))
    assert "the model: cat.default" in fallback_ops(program)
    assert_same(model, numbers(5, 3, 4, 4), 16)


class Tied(nn.Module):
    """Two layers with the same weights and biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.LSTM(6, 6, batch_first=True), nn.LSTM(6, 6, batch_first=True)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            setattr(self.other, name, getattr(self.layer, name))

    def forward(self, x):
        return self.other(self.layer(x)[0])[0]


@pytest.mark.slow
def test_layers_that_share_weights_keep_their_own_biases():
    model = built(Tied, 0.5)
    _, program = traced(model, numbers(3, 4, 6))
    assert "lstm" not in program.node_by_name
    agrees(model, program, numbers(3, 4, 6))
