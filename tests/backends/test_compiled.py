"""What a compiled function of nested tensors changes, when it is compiled anew, and when it is not compiled at all."""

import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from swamp.backends.compiled import Compiled

# Of torch's, when it imports its compiler.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on CPU")


def add(state, total, inputs, noise):
    total.add_(sum(x.sum() for x in noise))
    for name, value in state.items():
        value.mul_(2).add_(inputs[name])


def numbers(size, start=0.0):
    return {"b": torch.arange(size) + start, "a": torch.ones(size)}


@pytest.mark.parametrize("compiler", [pytest.param("inductor", marks=[COMPILER, pytest.mark.slow]), "none"])
def test_it_writes_where_the_function_would_for_each_set_of_bound_tensors(compiler, request):
    if compiler == "none":
        request.getfixturevalue("uncompiled_graph")
    compiled = Compiled(add)
    pairs = [(numbers(4), torch.zeros(())), (numbers(4, 7.0), torch.ones(()))]
    expected = [(numbers(4), torch.zeros(())), (numbers(4, 7.0), torch.ones(()))]
    calls = [compiled.bound(*pair) for pair in pairs]
    for step in range(3):
        inputs, noise = numbers(4, step), [torch.tensor(1.0), torch.tensor([2.0, step])]
        for call, pair in zip(calls, expected, strict=True):
            call(inputs, noise)
            add(*pair, inputs, noise)
    assert torch.equal(pairs[0][1], torch.tensor(3 * 3.0 + 3))
    for (state, total), (other, sum_of_it) in zip(pairs, expected, strict=True):
        assert torch.equal(total, sum_of_it)
        assert all(torch.equal(state[name], value) for name, value in other.items())


def test_it_is_compiled_once_for_each_set_of_shapes(monkeypatch):
    made = []

    def counted(graph, inputs):
        # Of real tensors torch would take every size for one that may change.
        assert all(isinstance(one, FakeTensor) and all(type(size) is int for size in one.shape) for one in inputs)
        made.append(len(inputs))
        return graph

    monkeypatch.setattr("torch._inductor.compile", counted)
    compiled = Compiled(add)
    for size in (4, 4, 5):
        state = numbers(size)
        compiled.bound(state, torch.zeros(()))(numbers(size), [torch.zeros(())])
        assert torch.equal(state["b"], 3 * torch.arange(size).float())
    assert made == [6, 6]


def test_with_compilation_disabled_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", None)
    state = numbers(4)
    with torch._dynamo.config.patch(disable=True):
        Compiled(add).bound(state, torch.zeros(()))(numbers(4), [torch.zeros(())])
    assert torch.equal(state["a"], torch.full((4,), 3.0))
