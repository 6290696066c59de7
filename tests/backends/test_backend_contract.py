"""What every backend promises. A new backend is one more entry of BACKENDS and inherits all of these tests."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.backends import Backend, Particle, Progress, Sequential, Threads, Ticket, TrainRequest, Vmapped
from swamp.errors import Diverged, Interrupted
from swamp.masks import Mask
from swamp.training import Seed, Task, Training
from swamp.training.average import copied
from swamp.training.loop import fit
from swamp.training.optimizers import OptimizerFactory
from swamp.training.snapshot import Snapshot


class Reversed:
    """Trains the last seed first, each on a copy of its own."""

    def __init__(self, model: nn.Module, task: Task, optimizer: OptimizerFactory | None = None) -> None:
        self.parts = model, task, optimizer

    def train(self, request: TrainRequest) -> list[Particle]:
        trained: list[Particle] = []
        for seed in reversed(request.seeds):
            trained += Sequential(*self.parts).train(replace(request, seeds=[seed]))
        return trained[::-1]


@dataclass(frozen=True)
class Entry:
    build: Callable[[nn.Module, Task, OptimizerFactory | None], Backend]
    exact: bool = True
    """Whether its arithmetic is the reference's, operation by operation."""


BACKENDS = {
    "sequential": Entry(Sequential),
    "reversed": Entry(Reversed),
    "threads": Entry(Threads),
    "vmapped": Entry(partial(Vmapped, compiled=False), exact=False),
}
OPTIMIZERS: dict[str, tuple[dict[str, Any], OptimizerFactory | None]] = {
    "sgd": ({"lr": 0.1}, None),
    "adamw": ({"lr": 0.01, "optimizer": "adamw"}, None),
    "factory": ({"lr": 0.01}, torch.optim.Adam),
}
# 10 steps would end in mid-epoch; 12 are 4 epochs of 3, of which the last two are averaged.
TRAINING = Training(epochs=4, batch_size=6, swa_fraction=0.5)
SEEDS = [(index, Seed(0).at("cycle", 1, "particle", index)) for index in (0, 1, 2)]


@pytest.fixture(params=BACKENDS)
def entry(request: pytest.FixtureRequest) -> Entry:
    return BACKENDS[request.param]


@pytest.fixture
def train(entry: Entry, image_task: Task, two_thirds: Any, ticket_of: Any) -> Callable[..., list[Particle]]:
    """Train on every third weight pruned, from a ticket that is not the model's own weights."""

    def run(
        model: nn.Module, training: Training = TRAINING, seeds: Any = SEEDS, optimizer: Any = None, **others: Any
    ) -> list[Particle]:
        task = others.pop("task", image_task)
        return entry.build(model, task, optimizer).train(
            TrainRequest(ticket_of(model), two_thirds(model), training, seeds, **others)
        )

    return run


@dataclass
class Recorder(Progress):
    """Progress that remembers what it was told, and stops after so many reports."""

    stop: int = 10**9

    def __post_init__(self) -> None:
        self.steps: list[tuple[int, int, int]] = []
        self.done: list[Particle] = []
        self.kept: dict[int, Snapshot] = {}

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        self.steps.append((index, step, total))
        if len(self.steps) >= self.stop:
            self.kept[index] = snapshot()
            raise Interrupted("enough")

    def load_snapshot(self, index: int) -> Snapshot | None:
        return self.kept.get(index)

    def on_last_step(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        assert self.steps[-1][1] == snapshot().step

    def on_finished(self, particle: Particle) -> None:
        self.done.append(particle)


def reference(
    model: nn.Module,
    task: Task,
    ticket: Ticket,
    mask: Mask,
    training: Training,
    seed: Seed,
    optimizer: Any,
    **span: Any,
) -> dict[str, Tensor]:
    alone = copy.deepcopy(model)
    alone.load_state_dict({n: v * mask[n] if n in mask else v for n, v in ticket.weights.items()})
    return fit(alone, task, training, seed, mask=mask, optimizer=optimizer, **span).weights


def assert_same_weights(entry: Entry, particles: list[Particle], expected: list[dict[str, Tensor]]) -> None:
    for particle, weights in zip(particles, expected, strict=True):
        assert particle.weights.keys() == weights.keys()
        for name, value in weights.items():
            assert torch.allclose(particle.weights[name], value, rtol=0, atol=0 if entry.exact else 1e-10), name


@pytest.mark.fast_cases(40)
@pytest.mark.pairwise
@pytest.mark.parametrize("swa", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_are_those_of_the_reference(name, swa, entry, train, model, image_task, two_thirds, ticket_of):
    options, optimizer = OPTIMIZERS[name]
    training = replace(TRAINING, swa=swa, **options)
    particles = train(model, training, optimizer=optimizer)
    parts = (model, image_task, ticket_of(model), two_thirds(model), training)
    assert_same_weights(entry, particles, [reference(*parts, seed, optimizer) for _, seed in SEEDS])
    assert {(p.averaged, p.steps) for p in particles} == {(2 if swa else 0, 12)}


def test_ten_steps_and_a_late_start_are_those_of_the_reference(entry, train, model, image_task, two_thirds, ticket_of):
    parts = (model, image_task, ticket_of(model), two_thirds(model), TRAINING)
    for span in ({"last": 10}, {"first": 4}, {"first": 2, "last": 5}):
        particles = train(model, **span)
        assert_same_weights(entry, particles, [reference(*parts, seed, None, **span) for _, seed in SEEDS])
        assert {p.steps for p in particles} == {span.get("last", 12) - span.get("first", 0)}


def test_particles_come_in_the_order_of_the_seeds_and_say_where_they_come_from(train, model, two_thirds, ticket_of):
    particles = train(model, seeds=[SEEDS[2], SEEDS[0]])
    assert [p.index for p in particles] == [2, 0]
    assert {p.ticket for p in particles} == {ticket_of(model).id}
    assert {p.mask for p in particles} == {two_thirds(model).digest}
    assert all(len(p.losses) == 4 and all(map(math.isfinite, p.losses)) for p in particles)
    assert train(model, seeds=[]) == []


def test_the_order_and_number_of_seeds_change_no_particle(entry, train, model):
    together = train(model)
    turned = train(model, seeds=SEEDS[::-1])[::-1]
    alone = [train(model, seeds=[seed])[0] for seed in SEEDS]
    assert_same_weights(entry, turned, [dict(p.weights) for p in together])
    assert_same_weights(entry, alone, [dict(p.weights) for p in together])


def test_particles_differ_from_each_other(train, model):
    weights = [torch.cat([v.flatten() for v in p.weights.values()]) for p in train(model)]
    assert all(not torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("sam", [0.0, 0.2])
def test_weights_are_exactly_zero_off_the_mask_and_learn_on_it(sam, train, model, two_thirds, ticket_of):
    mask, ticket = two_thirds(model), ticket_of(model)
    for particle in train(model, replace(TRAINING, sam=sam)):
        for name, alive in mask.items():
            assert particle.weights[name][~alive].count_nonzero() == 0
            assert (particle.weights[name] != ticket.weights[name])[alive].any()


def test_the_model_the_ticket_and_the_global_generators_are_left_alone(
    entry, model, image_task, two_thirds, ticket_of, same
):
    ticket, mask = ticket_of(model), two_thirds(model)
    before, of_ticket, generator = copied(model.state_dict()), copied(ticket.weights), torch.get_rng_state()
    backend = entry.build(model, image_task, None)
    backend.train(TrainRequest(ticket, mask, TRAINING, SEEDS))
    assert same(model.state_dict(), before)
    assert same(ticket.weights, of_ticket)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_backend_used_before_gives_the_same_again(entry, model, image_task, two_thirds, ticket_of):
    backend = entry.build(model, image_task, None)
    first = backend.train(TrainRequest(ticket_of(model), two_thirds(model), TRAINING, SEEDS))
    backend.train(TrainRequest(ticket_of(model, seed=6), Mask.ones(model), TRAINING, SEEDS))
    again = backend.train(TrainRequest(ticket_of(model), two_thirds(model), TRAINING, SEEDS))
    assert_same_weights(entry, again, [dict(p.weights) for p in first])


def test_progress_receives_every_step_and_every_particle(train, mlp):
    recorder = Recorder()
    particles = train(mlp, progress=recorder)
    assert sorted(recorder.steps) == [(index, step, 12) for index in range(3) for step in range(1, 13)]
    assert sorted(recorder.done, key=lambda p: p.index) == particles


@pytest.mark.pairwise
@pytest.mark.fast_cases(10)
@pytest.mark.parametrize("stop", [1, 3, 8, 11, 12, 13, 20, 29, 36])
def test_an_interrupted_training_resumes_to_the_same_particles(stop, entry, train, model):
    whole = train(model)
    recorder = Recorder(stop)
    with pytest.raises(Interrupted):
        train(model, progress=recorder)
    assert recorder.kept
    recorder.stop = 10**9
    taken = len(recorder.steps)
    done = {p.index: p for p in recorder.done}
    rest = train(model, seeds=[seed for seed in SEEDS if seed[0] not in done], progress=recorder)
    done.update((p.index, p) for p in rest)
    particles = [done[index] for index in range(3)]
    assert_same_weights(entry, particles, [dict(p.weights) for p in whole])
    assert [(p.steps, p.averaged) for p in particles] == [(p.steps, p.averaged) for p in whole]
    for again, once in zip(particles, whole, strict=True):
        assert again.losses == (once.losses if entry.exact else pytest.approx(once.losses, rel=1e-12))
    if entry.exact:
        assert len(recorder.steps) == 36 >= taken


def test_a_loss_that_is_not_a_number_names_the_particle(train, mlp, image_task):
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) * math.nan

    with pytest.raises(Diverged, match="particle 1: the training loss became nan in epoch 1"):
        train(mlp, seeds=[SEEDS[1]], task=replace(image_task, loss=loss))
