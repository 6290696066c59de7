"""Wrong arguments of the public calls end in a SwampError that says what to write, whatever they are."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import swamp
from swamp.arguments import checked
from swamp.backends import Sequential

X, Y = torch.randn(32, 4), torch.arange(32) % 2
TASK = swamp.Task.of(train=(X, Y), test=(X, Y))


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


MODEL = Net()
HOW = swamp.Training(epochs=2, batch_size=16, swa_fraction=0.5)
RIGHT = {"model": MODEL, "task": TASK, "sparsity": 0.5, "particles": 2, "training": HOW}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sparsity": "90%"}, "sparsity must be a number, got '90%'. Write sparsity=0.9."),
        ({"sparsity": "0.9"}, "sparsity must be a number, got '0.9'. Write sparsity=0.9."),
        ({"sparsity": None}, "sparsity must be a number, got None."),
        ({"sparsity": 90}, "sparsity"),
        (
            {"particles": 2.5},
            "particles must be a whole number, or auto, or a sequence, each item a whole number, or auto, got 2.5.",
        ),
        ({"particles": 4.0}, "got 4.0. Write particles=4."),
        ({"particles": (2, "x")}, "particles must be a whole number, or auto, got 'x'."),
        ({"model": Net}, "model must be a torch.nn.Module, got the class Net. Create one: model=Net(...)"),
        ({"model": MODEL.state_dict()}, "model must be a torch.nn.Module, got a OrderedDict."),
        ({"task": DataLoader(TensorDataset(X, Y))}, "got a DataLoader. Make one with swamp.Task.of(train=..., test="),
        ({"task": (X, Y)}, "task must be a swamp.Task, got"),
        (
            {"training": {"epochs": 3}},
            "training must be a swamp.Training, got a dict. Write training=swamp.Training(**{",
        ),
        ({"training": swamp.Plan()}, "training must be a swamp.Training, got a Plan."),
        ({"backend": "thread"}, "unknown backend 'thread'. Did you mean threads?"),
        ({"backend": Sequential}, "got the class Sequential. Create one, Sequential(model, task), or give its name."),
        ({"backend": 3}, "backend must be an object with the method train, or text, got 3."),
        ({"method": "swmap"}, "unknown method 'swmap'. Did you mean swamp"),
        ({"method": 3}, "method must be text, got 3."),
        ({"progress": "yes"}, "progress must be true or false, got 'yes'."),
        ({"on_cycle": "print"}, "on_cycle must be a function, got 'print'."),
        ({"out": 3}, "out must be a path, or text, got 3."),
        ({"sparsty": 0.5}, "prune has no argument 'sparsty'. Did you mean sparsity?"),
        ({"learning_rate": 0.1}, "prune has no argument 'learning_rate'."),
        ({"random_state": 0}, "prune has no argument 'random_state'. Did you mean seed?"),
        ({"alpha": 0.2}, "prune has no argument 'alpha'. Did you mean prune_fraction?"),
        ({"prune_fraction": "20%"}, "prune_fraction must be a number, got '20%'. Write prune_fraction=0.2."),
        ({"exclude": {"head"}}, "exclude must be text, or a sequence of such values, got a set."),
        ({"on_divergence": "ignore"}, "unknown on_divergence 'ignore'"),
        ({"seed": "0"}, "seed must be a whole number, got '0'. Write seed=0."),
    ],
)
def test_a_wrong_argument_is_refused_with_what_to_write(wrong, message):
    with pytest.raises(swamp.SwampError) as error:
        swamp.prune(**(RIGHT | wrong))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: swamp.prune(MODEL), "prune needs task: prune(model, task, ...)"),
        (lambda: swamp.prune(MODEL, TASK, 0.9), "prune takes 2 arguments by position (model, task), got 3."),
        (lambda: swamp.prune(MODEL, TASK, model=MODEL), "prune got model twice"),
        (lambda: swamp.Training(learning_rate=0.1), "swamp.Training has no argument 'learning_rate'. Did you mean lr?"),
        (lambda: swamp.Training(tail=0.1), "swamp.Training has no argument 'tail'. Did you mean swa_fraction?"),
        (lambda: swamp.Plan(sparsty=0.1), "swamp.Plan has no argument 'sparsty'. Did you mean sparsity?"),
        (lambda: swamp.Task.of(train=(X, Y)), "of needs test: of(train, test, validation, ...)"),
        (
            lambda: swamp.Task.of(train=(X, Y), test=(X, Y), metrcs={}),
            "swamp.Task has no argument 'metrcs'. Did you mean",
        ),
        (lambda: swamp.Task.custom(X, "loss", None), "loss must be a function, got"),
        (lambda: swamp.Task.custom(X, nn.MSELoss(), None), "evaluate must be a function, got"),
        (lambda: swamp.Ticket(MODEL.state_dict()), "swamp.Ticket needs steps."),
        (lambda: swamp.Ticket(MODEL.state_dict(), step=3), "swamp.Ticket has no argument 'step'. Did you mean steps"),
        (lambda: swamp.Scope(exlude=("a",)), "swamp.Scope has no argument 'exlude'. Did you mean exclude"),
        (lambda: swamp.Scope(exclude=3), "exclude must be text, got 3."),
        (lambda: swamp.cycles(MODEL, TASK, HOW, swamp.Plan()), "plan must be a swamp.Plan, got a Training."),
        (lambda: swamp.retrain(MODEL, TASK, MODEL.state_dict(), None), "Make one with swamp.Ticket(model.state_dict()"),
        (
            lambda: swamp.retrain(MODEL, TASK, swamp.Ticket(MODEL.state_dict(), 0), {"0.weight": X}),
            "mask must be a swamp.Mask, got a dict. Make one with swamp.Mask.from_zeros(model).",
        ),
        (lambda: swamp.hold(MODEL, {"0.weight": X}, None), "mask must be a swamp.Mask, got a dict."),
        (lambda: swamp.hold(Net, swamp.Mask.ones(MODEL), None), "got the class Net. Create one: model=Net(...)"),
        (lambda: swamp.hold(MODEL, swamp.Mask.ones(MODEL)), "hold needs optimizer: hold(model, mask, optimizer, ...)"),
        (lambda: swamp.Mask.ones(MODEL.state_dict()), "model must be a torch.nn.Module, got a OrderedDict."),
        (lambda: swamp.Mask.from_zeros(MODEL, "0.*"), "scope must be a swamp.Scope, got '0.*'."),
        (lambda: swamp.Mask.ones(), "ones needs model: ones(model, scope, ...)"),
        (lambda: swamp.load_run(b"runs"), "path must be a path, or text, got b'runs'."),
    ],
)
def test_every_public_call_refuses_what_it_cannot_use(call, message):
    with pytest.raises(swamp.SwampError) as error:
        call()
    assert message in str(error.value)


def test_what_other_libraries_give_is_accepted(tmp_path):
    numbers = {"sparsity": np.float32(0.5), "particles": [np.int64(1)], "seed": np.int64(3), "prune_fraction": 0.5}
    swamp.prune(MODEL, TASK, training=HOW, backend="sequential", out=Path(tmp_path) / "run", **numbers)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers(-2, 3), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
    st.sampled_from([Net, MODEL, TASK, swamp.Plan(), swamp.Mask, Sequential, X, np.zeros(2), object(), print, ..., 1j]),
)
NAMES = [name for name in swamp.Plan.__dataclass_fields__ if name not in ("method", "sparsity", "particles")]
CALLS = ["model", "task", "sparsity", "particles", "method", "training", "backend", "out", "progress", "on_cycle"]


class Never:
    """A backend that stops the call at its first training."""

    def train(self, *_, **__):
        raise KeyboardInterrupt


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*CALLS, *NAMES]), ANYTHING, min_size=1, max_size=2))
def test_any_value_of_any_argument_is_used_or_refused_by_a_swamp_error(wrong):
    wrong = {name: value for name, value in wrong.items() if not (name == "out" and isinstance(value, str))}
    if wrong.get("progress") is True:
        return
    with suppress(swamp.SwampError, KeyboardInterrupt):
        swamp.prune(**(RIGHT | {"backend": Never(), "barrier_points": 0} | wrong))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(list(swamp.Training.__dataclass_fields__)), ANYTHING, min_size=1, max_size=2))
def test_any_value_of_any_field_of_training_is_taken_or_refused_by_a_swamp_error(wrong):
    with suppress(swamp.SwampError):
        swamp.Training(**wrong)


def test_a_checked_function_keeps_its_name_and_help():
    assert swamp.prune.__name__ == "prune"
    assert "sparsity" in swamp.prune.__doc__

    @checked
    def double(number: int = 2) -> int:
        return 2 * number

    assert double() == 4


def test_keywords_that_a_function_passes_on_are_left_to_what_it_calls():
    @checked
    def made(kind: type, **fields: object) -> object:
        return kind(**fields)

    assert made(dict, a=1) == {"a": 1}
    with pytest.raises(swamp.SwampError, match="made needs kind"):
        made(a=1)
    with pytest.raises(swamp.SwampError, match=r"swamp.Training has no argument 'epoch'. Did you mean epochs"):
        made(swamp.Training, epoch=3)
