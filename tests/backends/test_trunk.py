"""A particle that goes on from its own trunk, with the trunk's seed, is the particle that was trained in one go."""

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from swamp.backends import CustomTrainer, Progress, Sequential, Threads, Ticket, TrainJob, TrainRequest
from swamp.backends.ticket import TRUNK, Trunk
from swamp.backends.vmapped import Vmapped
from swamp.masks import Mask, hold
from swamp.training import Seed, Training

from .test_equality import network_of, task_of

SEED = Seed(0).at("trunk")
TRAINING = Training(epochs=4, batch_size=6, swa_fraction=0.5, lr=0.05)
"""12 steps of 18 examples; the weights after steps 9 and 12 are averaged."""
BACKENDS = {"sequential": Sequential, "threads": Threads, "vmapped": partial(Vmapped, compiled=False)}
TRAININGS = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "ema": {"swa": False, "swa_fraction": 0.0, "ema": 0.9},
    "s2-sam": {"sam": 0.05, "sharpness": "s2-sam"},
}


class Taking(Progress):
    """Takes the snapshot at one step."""

    def __init__(self, step: int) -> None:
        self.step, self.taken = step, []

    def on_step(self, index, step, total, snapshot) -> None:
        if step == self.step:
            self.taken.append(snapshot())


def trunk_of(backend, request: TrainRequest, steps: int) -> Trunk:
    progress = Taking(steps)
    (trained,) = backend.train(replace(request, seeds=[(TRUNK, SEED)], last=steps, progress=progress))
    return Trunk(progress.taken[0], trained.state)


def request_of(model, training: Training) -> TrainRequest:
    mask = Mask({name: torch.arange(p.numel()).view(p.shape) % 3 != 0 for name, p in Mask.ones(model).items()})
    return TrainRequest(Ticket(model.state_dict(), 0), mask, training, [(0, SEED), (1, SEED)])


# After a sample of the average (9), before any (5), in the middle of an epoch or at its end (6).
@pytest.mark.parametrize("steps", [5, 6, 10])
@pytest.mark.parametrize("options", TRAININGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_particles_that_go_on_from_a_trunk_equal_a_training_in_one_go(backend, options, steps):
    model, task = network_of("normed"), task_of()
    request = request_of(model, replace(TRAINING, **TRAININGS[options]))
    trunk = trunk_of(Sequential(model, task), request, steps)
    build: Any = BACKENDS[backend]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = build(model, task).train(replace(request, trunk=trunk, first=steps))
    (expected,) = Sequential(model, task).train(replace(request, seeds=[(0, SEED)]))
    exact = backend != "vmapped"
    for particle in found:
        assert (particle.steps, particle.averaged) == (12 - steps, expected.averaged)
        assert particle.losses == pytest.approx(expected.losses, rel=0 if exact else 1e-9)
        for name, value in expected.weights.items():
            assert torch.allclose(particle.weights[name].double(), value.double(), rtol=0, atol=0 if exact else 1e-9)


def test_a_custom_trainer_hands_its_optimizer_on_as_extra_state():
    model, task = network_of("normed"), task_of()

    def train(job: TrainJob) -> float:
        optimizer = torch.optim.SGD(job.model.parameters(), lr=0.1, momentum=0.9)
        if "momentum" in job.state:
            for parameter, momentum in zip(job.model.parameters(), job.state["momentum"], strict=True):
                optimizer.state[parameter]["momentum_buffer"] = momentum
        job.model.train()
        with hold(job.model, job.mask, optimizer):
            for step in range(job.first, job.last):
                epoch, within = divmod(step, job.per_epoch)
                inputs, targets = next(task.train.shuffled(6, Seed(5), epoch, within))
                optimizer.zero_grad()
                torch.manual_seed(step)  # dropout
                loss = task.loss(job.model(inputs), targets)
                loss.backward()
                optimizer.step()
                job.stepped()
        job.state["momentum"] = [optimizer.state[p]["momentum_buffer"] for p in job.model.parameters()]
        return loss.item()

    backend = CustomTrainer(model, task, train)
    request = request_of(model, TRAINING)
    whole = backend.train(replace(request, seeds=[(0, SEED)]))[0]
    trunk = trunk_of(backend, request, 10)
    for particle in backend.train(replace(request, trunk=trunk, first=10)):
        assert particle.averaged == 2
        assert all(torch.equal(particle.weights[name], value) for name, value in whole.weights.items())
