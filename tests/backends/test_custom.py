import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from swamp import Diverged, Plan, SwampError, cycles, hold
from swamp.backends import CustomTrainer, Sequential, Ticket, TrainJob, TrainRequest
from swamp.masks import Mask
from swamp.training import Seed, Task, Training
from swamp.training.average import copied
from swamp.training.mask_updates import Dynamic

TRAINING = Training(epochs=4, batch_size=6, lr=0.1, swa_fraction=0.5)
SEEDS = [(index, Seed(0).at("cycle", 1, "particle", index)) for index in (0, 1, 2)]


def plain_loop(task: Task, change: Callable[[TrainJob], None] = lambda work: None) -> Callable[[TrainJob], float]:
    """What a user writes: SGD over the batches of `task`."""

    def train(work: TrainJob) -> float:
        settings = work.training
        optimizer = torch.optim.SGD(
            work.model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        losses: list[float] = []
        work.model.train()
        with hold(work.model, work.mask, optimizer):
            while work.step < work.last:
                epoch, within = divmod(work.step, work.per_epoch)
                inputs, targets = next(task.train.shuffled(settings.batch_size, work.seed, epoch, within))
                optimizer.param_groups[0]["lr"] = work.rate()
                optimizer.zero_grad()
                loss = F.cross_entropy(work.model(inputs), targets)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                work.stepped()
                change(work)
        return sum(losses) / len(losses)

    return train


@pytest.mark.parametrize("span", [{}, {"last": 10}, {"first": 4}, {"first": 2, "last": 5}])
@pytest.mark.parametrize(
    "averaged", [{"swa": True}, {"swa": False}, {"swa": False, "ema": 0.9}, {"swa": False, "lawa": 2}]
)
def test_a_plain_loop_gives_the_particles_of_the_library(span, averaged, mlp, image_task, two_thirds, ticket_of):
    arguments = ticket_of(mlp), two_thirds(mlp), replace(TRAINING, **averaged), SEEDS
    own = CustomTrainer(mlp, image_task, plain_loop(image_task)).train(TrainRequest(*arguments, **span))
    for mine, theirs in zip(own, Sequential(mlp, image_task).train(TrainRequest(*arguments, **span)), strict=True):
        assert (mine.index, mine.ticket, mine.mask) == (theirs.index, theirs.ticket, theirs.mask)
        assert (mine.steps, mine.averaged) == (theirs.steps, theirs.averaged)
        for name, value in theirs.weights.items():
            assert torch.allclose(mine.weights[name], value, rtol=0, atol=1e-12), name


def test_whole_runs_are_those_of_the_library(task, mlp):
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    del mlp
    wide = replace(task, train=replace(task.train, inputs=task.train.inputs.double()), validation=None)
    wide = replace(wide, test=replace(wide.test, inputs=wide.test.inputs.double()))
    plan, training = Plan(particles=(2,), sparsity=0.75, cycles=2), replace(TRAINING, batch_size=16)
    ours = [*cycles(model, wide, plan, training, backend=Sequential(model, wide))]
    own = [*cycles(model, wide, plan, training, backend=CustomTrainer(model, wide, plain_loop(wide)))]
    assert [cycle.mask for cycle in own] == [cycle.mask for cycle in ours]
    assert [cycle.total.steps for cycle in own] == [cycle.total.steps for cycle in ours]
    for mine, theirs in zip(own, ours, strict=True):
        assert mine.metrics.test == pytest.approx(theirs.metrics.test)


@pytest.mark.parametrize("method", ["gmp", "acdc", "rigl"])
def test_a_mask_that_changes_within_a_training_is_refused_before_training(method, image_task, mlp):
    taken: list[TrainJob] = []
    backend = CustomTrainer(mlp, image_task, plain_loop(image_task, taken.append))
    plan = Plan(method, sparsity=0.5, dynamic=Dynamic(update_interval=2, acdc_phase=0.2))
    with pytest.raises(SwampError, match=f"the mask of {method} changes between two steps of a training"):
        next(cycles(mlp, image_task, plan, TRAINING, backend=backend))
    assert not taken


def test_the_model_the_ticket_and_the_global_generators_are_left_alone(mlp, image_task, two_thirds, ticket_of, same):
    ticket, before, generator = ticket_of(mlp), copied(mlp.state_dict()), torch.get_rng_state()
    of_ticket = copied(ticket.weights)
    drawn: list[float] = []
    train = plain_loop(image_task, lambda work: drawn.append(float(torch.rand(()))))
    CustomTrainer(mlp, image_task, train).train(TrainRequest(ticket, two_thirds(mlp), TRAINING, SEEDS))
    assert same(mlp.state_dict(), before)
    assert same(ticket.weights, of_ticket)
    assert torch.equal(torch.get_rng_state(), generator)
    assert len(set(drawn)) == len(drawn)


def test_names_and_numbers_tell_particles_apart(mlp, image_task):
    seen: list[TrainJob] = []
    backend = CustomTrainer(mlp, image_task, plain_loop(image_task, seen.append))
    backend.train(TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS))
    assert [*dict.fromkeys(work.name for work in seen)] == [f"cycle-1-particle-{index}" for index in range(3)]
    assert len({work.number for work in seen}) == 3
    assert all(0 <= work.number < 2**31 for work in seen)


@pytest.mark.parametrize("extra", [-1, 1])
def test_another_number_of_steps_than_asked_is_refused(extra, mlp, image_task):
    def train(work: TrainJob) -> float:
        for _ in range(work.steps + extra):
            work.stepped()
        return 0.0

    with pytest.raises(SwampError, match=rf"took {12 + extra} steps where 12 were asked for"):
        CustomTrainer(mlp, image_task, train).train(
            TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS)
        )


def test_a_trainer_that_revives_weights_is_found_out(mlp, image_task, two_thirds):
    def train(work: TrainJob) -> float:
        for _ in range(work.steps):
            work.stepped()
        with torch.no_grad():
            work.model[1].weight += 1
        return 0.0

    with pytest.raises(SwampError, match=r"pruned weights of '1\.weight' are not zero"):
        CustomTrainer(mlp, image_task, train).train(
            TrainRequest(Ticket(mlp.state_dict(), 0), two_thirds(mlp), replace(TRAINING, swa=False), SEEDS)
        )


def test_a_loss_that_is_not_a_number_names_the_particle(mlp, image_task):
    def train(work: TrainJob) -> float:
        plain_loop(image_task)(work)
        return float("nan")

    with pytest.raises(Diverged, match="particle 1: the mean training loss is nan"):
        CustomTrainer(copy.deepcopy(mlp), image_task, train).train(
            TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS[1:])
        )


def test_a_number_of_numpy_is_a_loss(mlp, image_task):
    def train(work: TrainJob) -> float:
        return np.float32(plain_loop(image_task)(work))

    request = TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS[:1])
    (particle,) = CustomTrainer(mlp, image_task, train).train(request)
    assert type(particle.losses[0]) is float


def test_a_trainer_that_may_move_its_model_to_the_gpu_has_the_gpu_seeded(mlp, image_task, monkeypatch):
    devices: list[str] = []

    def isolated(seed: Seed, device: torch.device) -> nullcontext[None]:
        devices.append(device.type)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("swamp.backends.custom.isolated", isolated)
    request = TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS[:1])
    CustomTrainer(mlp, image_task, plain_loop(image_task)).train(request)
    assert devices == ["cuda"]


def test_survivors_are_bit_equal_to_the_ticket_when_a_trainer_gets_them(mlp, image_task, two_thirds, ticket_of):
    ticket, mask = ticket_of(mlp), two_thirds(mlp)
    given: list[dict[str, torch.Tensor]] = []

    def train(work: TrainJob) -> float:
        given.append(copied(work.model.state_dict()))
        return plain_loop(image_task)(work)

    CustomTrainer(mlp, image_task, train).train(TrainRequest(ticket, mask, TRAINING, SEEDS))
    for state in given:
        for name, value in state.items():
            alive = mask[name] if name in mask else torch.ones_like(value, dtype=torch.bool)
            assert torch.equal(value[alive], ticket.weights[name][alive])
            assert int(value[~alive].count_nonzero()) == 0
    assert len(given) == 3


def test_a_model_in_evaluation_mode_is_trained_in_training_mode(mlp, task):
    modes = []

    def train(job):
        modes.append(job.model.training)
        for _ in range(job.steps):
            job.stepped()
        return 0.0

    backend = CustomTrainer(mlp.eval(), task, train)
    backend.train(TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), Training(epochs=1), [(0, Seed(0))]))
    assert modes == [True]
    assert not mlp.training
