"""Tiny runs to look into, and a network whose loss is a quadratic of its weights."""

from dataclasses import replace
from pathlib import Path
from threading import Event

import torch
from torch import nn

from swamp.algorithms import Plan
from swamp.analysis import RunData
from swamp.cli.progress import Quiet
from swamp.datasets import DataOptions
from swamp.runs import RunConfig, start
from swamp.training import Task, TensorData, Training


def run(path: Path, particles: int = 3, method: str = "swamp", keep: str = "particles", **changes) -> Path:
    """A run of half a second: BatchNorm, augmentation, a tail with averaging, three cycles; or fewer, by `changes`."""
    plan = Plan(
        method, sparsity=0.75, particles=(particles,), prune_fraction=(0.5,), ticket_epochs=1, barrier_threshold=1.0
    )
    training = Training(epochs=4, batch_size=64, lr=0.05, swa_fraction=0.5)
    data = DataOptions(examples=640)
    config = RunConfig(
        "tiny", "digits", "mlp-bn-16", plan, training, data, threads=1, backend="sequential", keep_checkpoints=keep
    )
    start(replace(config, plan=replace(plan, **changes)), path, Quiet(), Event())
    return path


class Unread(TensorData):
    """Data that nobody may look at."""

    def in_order(self, batch_size):
        raise AssertionError("the test data was read")


def blind(run_data: RunData) -> RunData:
    """The same run, whose test data cannot be read."""
    task = run_data.task
    return replace(run_data, task=replace(task, test=Unread(task.test.inputs, task.test.targets)))


class Weights(nn.Module):
    """Its outputs are its weights, whatever the input; `offset` is not prunable."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size))
        self.offset = nn.Parameter(torch.zeros(size))

    def forward(self, inputs):
        return (self.weight + self.offset).expand(len(inputs), -1)


def quadratic(centre: torch.Tensor) -> Task:
    """Loss |w - centre|^2, and as the error a tenth of it."""
    data = TensorData(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))

    def loss(outputs, targets):
        del targets
        return (outputs - centre.to(outputs)).square().sum(-1).mean()

    unread = Unread(data.inputs, data.targets)
    return Task(data, unread, data, loss=loss, metrics={}, error=lambda o, t: float(loss(o, t)) / 10)


def at(*weights: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor([weights]), "offset": torch.zeros(len(weights))}
