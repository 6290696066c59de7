from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

import swamp
from swamp.algorithms import METHODS, Cycle
from swamp.algorithms.store import Store
from swamp.backends import Sequential
from swamp.training import Seed, Task, TensorData, Training
from swamp.training.mask_updates import Dynamic

TRAINING = Training(epochs=4, batch_size=16, lr=0.1, swa_fraction=0.5)
SHORT = replace(TRAINING, batch_size=32)
"""Half as many steps: 12 for the 96 examples of `task`."""


PLAN = swamp.Plan(
    sparsity=0.8,
    prune_fraction=(0.5,),
    particles=(3,),
    ticket_epochs=1,
    barrier_threshold=1.0,
    dynamic=Dynamic(update_interval=4),
)


def covering() -> list[str]:
    """Some methods that have each setting by which methods differ: on these alone it depends what a method uses."""
    settings = {name: {*asdict(method).items()} - {("summary", method.summary)} for name, method in METHODS.items()}
    missing, chosen = set().union(*settings.values()), list[str]()
    while missing:
        best = max(METHODS, key=lambda name: len(settings[name] & missing))
        missing -= settings[best]
        chosen.append(best)
    return chosen


COVERING = covering()


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let methods that prune in 100 rounds prune in 3: enough where a test is about the cycles."""
    for name, method in METHODS.items():
        if method.rounds > 1:
            monkeypatch.setitem(METHODS, name, replace(method, rounds=3))


def run(model: nn.Module, task: Task, method: str, training: Training = TRAINING, **options) -> list[Cycle]:
    return list(swamp.cycles(model, task, replace(PLAN, method=method, **options), training))


def same(a: Cycle, b: Cycle) -> bool:
    return a.mask == b.mask and all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


def exact(model, task: Task) -> tuple:
    """Model and data in float64, where two ways of the same sum agree."""
    parts = (task.train, task.test, task.validation)
    train, test, held = (TensorData(part.inputs.double(), part.targets) for part in parts)
    return model.double(), replace(task, train=train, test=test, validation=held)


def fresh_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def swamp_initial():
    from swamp.training.rng import isolated

    return isolated(Seed(7).at("init"))


class Tickets(Store):
    """Remembers the ticket, and every particle."""

    def __init__(self):
        self.tickets, self.starts = [], []

    def keep_ticket(self, ticket):
        self.tickets.append(ticket)


class Spy(Sequential):
    """Remembers where particles started and what they were trained with."""

    def __init__(self, model, task):
        super().__init__(model, task)
        self.calls, self.last = [], []

    def train(self, request):
        seeds = [seed for _, seed in request.seeds]
        self.calls.append((request.ticket, request.mask, request.training, seeds, request))
        self.last = super().train(request)
        return self.last


def spied(model, task, method, training=TRAINING, **options) -> tuple[list[Cycle], list]:
    spy = Spy(model, task)
    record = list(swamp.cycles(model, task, replace(PLAN, method=method, **options), training, backend=spy))
    return record, spy.calls[1:]
