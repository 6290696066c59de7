"""Autotune times the ways on the task itself, keeps to one, and says why."""

import contextlib
import json

import pytest
import torch
from torch import nn

from swamp.backends import Autotune, Progress, Sequential, Threads, Ticket, TrainRequest, Vmapped
from swamp.backends import autotune as module
from swamp.backends.autotune import Choice
from swamp.backends.base import ForwardingProgress
from swamp.errors import Interrupted, SwampError
from swamp.masks import Mask
from swamp.training import Seed, Task, TensorData, Training

SEEDS = [(index, Seed(0).at("particle", index)) for index in range(3)]
TRAINING = Training(epochs=4, batch_size=6, swa_fraction=0.5)


class Paced:
    """A backend whose steps take so long on a clock of its own."""

    clock = 0.0
    calls: list[str]

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds

    def train(self, request):
        Paced.calls.append(self.name)
        for step in range(1, 10_000):
            for index, _ in request.seeds:
                Paced.clock += self.seconds
                request.progress.on_step(index, step, 10_000, lambda: None)
        return []


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch):
    """Autotune with backends of given paces, and the time that Paced says it is."""

    def build(model: nn.Module, task: Task, *, cycles: int = 1000, **paces: float) -> tuple[Autotune, list[Choice]]:
        Paced.clock, Paced.calls, told = 0.0, [], []
        monkeypatch.setattr(module.time, "perf_counter", lambda: Paced.clock)
        monkeypatch.setattr(module, "cores", lambda: 2)
        monkeypatch.setattr(module, "Threads", lambda *parts: Paced("threads", paces["threads"]))
        vmapped = Paced("vmapped", paces.get("vmapped", 1.0))
        vmapped.step = lambda training: paces.get("no_stack")
        monkeypatch.setattr(module, "Vmapped", lambda *parts: vmapped)
        auto = Autotune(model, task, cycles=cycles, on_choice=told.append)
        auto.sequential = Paced("sequential", paces["sequential"])
        return auto, told

    return build


def run(auto: Autotune, model: nn.Module, seeds=SEEDS, last: int | None = None):
    class Stop(Progress):
        def on_step(self, *_):
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        auto.train(
            TrainRequest(Ticket(model.state_dict(), 0), Mask.ones(model), TRAINING, seeds, last=last, progress=Stop())
        )


def test_timing_is_reported_as_a_stage_of_its_own(paced, mlp, image_task):
    names: list[tuple[str, bool]] = []

    class Stages(Progress):
        def on_stage(self, name, *, once=False):
            names.append((name, once))

    auto, _ = paced(mlp, image_task, sequential=0.1, threads=0.05, vmapped=0.08)
    outer = ForwardingProgress(Stages())
    with contextlib.suppress(Interrupted):
        auto.train(TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS, last=0, progress=outer))
    assert names == [("timing backends", True)]


def test_a_forwarding_progress_forwards_every_report():
    reports = {name for name, value in vars(Progress).items() if callable(value) and not name.startswith("_")}
    assert reports <= set(vars(ForwardingProgress))


@pytest.mark.parametrize(
    ("paces", "chosen", "why"),
    [
        ({"sequential": 0.1, "threads": 0.05, "vmapped": 0.08}, "threads", "2.00 times as fast"),
        ({"sequential": 0.1, "threads": 0.05, "vmapped": 0.02}, "vmapped", "5.00 times as fast"),
        ({"sequential": 0.1, "threads": 0.2, "vmapped": 0.3}, "sequential", "nothing else was faster"),
        ({"sequential": 0.1, "threads": 0.0995, "vmapped": 0.3}, "sequential", "nothing else was faster"),
    ],
)
def test_the_fastest_backend_by_more_than_noise_is_chosen_with_its_reasons(paces, chosen, why, paced, mlp, image_task):
    auto, told = paced(mlp, image_task, **paces)
    run(auto, mlp)
    (choice,) = told
    assert choice.backend == chosen
    assert choice.why.startswith(why)
    assert choice.milliseconds == pytest.approx({name: 1000 * seconds for name, seconds in paces.items()})
    assert Paced.calls == ["sequential", "threads", "vmapped", chosen]
    run(auto, mlp)
    assert Paced.calls[4:] == [chosen], "what was chosen once is kept to"
    assert len(told) == 1


def test_compiling_is_not_tried_where_it_would_not_pay(paced, mlp, image_task):
    auto, told = paced(mlp, image_task, cycles=100, sequential=0.01, threads=0.02)
    run(auto, mlp)
    assert "vmapped" not in Paced.calls
    assert "compiling takes about 15 s, all of the training about 36 s" in told[0].why


def test_autotune_estimates_from_the_whole_training_even_if_a_part_is_trained(paced, mlp, image_task):
    # Masks that change are trained from one change to the next: 36 s in all, of which this is three.
    auto, told = paced(mlp, image_task, cycles=100, sequential=0.01, threads=0.005)
    run(auto, mlp, last=1)
    assert told[0].backend == "threads"


def test_convolutions_are_not_stacked_on_cpu(paced, image_task):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).double()
    auto, told = paced(model, image_task, sequential=0.1, threads=0.2)
    run(auto, model)
    assert "grouped ones" in told[0].why
    assert "vmapped" not in Paced.calls


def test_what_cannot_be_is_left_out_and_said(paced, image_task):
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(16, 3).double()

        def forward(self, inputs):
            return self.out(inputs.flatten(1)) * torch.rand(1)

    model = Drawing()
    auto, told = paced(model, image_task, sequential=0.1, threads=0.05, no_stack="it cannot.")
    run(auto, model)
    assert told[0].backend == "sequential"
    assert "no threads: the model, the loss, the optimizer or the augmentation draws random numbers" in told[0].why
    assert "not stacked: it cannot." in told[0].why


@pytest.mark.parametrize(("cycles", "seeds"), [(1, SEEDS), (1000, SEEDS[:1])])
def test_few_steps_and_single_particles_are_timed_by_nobody(cycles, seeds, paced, mlp, image_task):
    auto, told = paced(mlp, image_task, cycles=cycles, sequential=0.1, threads=0.01, vmapped=0.01)
    run(auto, mlp, seeds)
    assert Paced.calls == ["sequential"]
    assert told == []


def test_a_run_of_seconds_times_no_other_backend_and_records_why(paced, mlp, image_task):
    auto, told = paced(mlp, image_task, cycles=100, sequential=0.002, threads=0.001, vmapped=0.001)
    run(auto, mlp)
    assert Paced.calls == ["sequential", "sequential"]
    assert told == [Choice("sequential", told[0].why, {"sequential": pytest.approx(2.0)})]
    assert "about 7.2 s, too little" in told[0].why


@pytest.mark.parametrize(("name", "kind"), [("threads", Threads), ("vmapped", Vmapped), ("sequential", Sequential)])
def test_what_an_earlier_session_chose_is_kept_to(name, kind, mlp, image_task):
    told = []
    auto = Autotune(mlp, image_task, choice=Choice(name, "it was", {}), on_choice=told.append)
    assert type(auto.chosen) is kind
    assert told == []


def test_a_choice_goes_through_json_and_nonsense_is_refused(mlp, image_task):
    choice = Choice("threads", "because", {"threads": 1.5})
    assert Choice.from_json(json.loads(json.dumps(choice.to_json()))) == choice
    for nonsense in ({}, None, [], {"backend": "threads", "why": "", "milliseconds": 3}):
        with pytest.raises(SwampError, match="not a record of how particles are trained"):
            Choice.from_json(nonsense)
    with pytest.raises(SwampError, match=r"unknown backend 'thread'\. Did you mean threads"):
        Autotune(mlp, image_task, choice=Choice("thread", "", {}))


@pytest.mark.slow
def test_a_real_trial_leaves_no_trace_in_the_particles(mlp):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(60, 1, 4, 4, generator=generator, dtype=torch.float64)
    data = TensorData(inputs, torch.randint(0, 3, (60,), generator=generator))
    task, told = Task(data, data), []
    training = Training(epochs=70, batch_size=6, swa_fraction=0)
    ticket, mask = Ticket(mlp.state_dict(), 0), Mask.ones(mlp)
    found = Autotune(mlp, task, on_choice=told.append).train(TrainRequest(ticket, mask, training, SEEDS))
    expected = Sequential(mlp, task).train(TrainRequest(ticket, mask, training, SEEDS))
    assert told[0].backend in ("sequential", "threads")
    assert told[0].milliseconds["sequential"] > 0
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one.weights[name], weight) for name, weight in other.weights.items())
