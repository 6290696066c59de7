"""Tiny runs to look into, and a network whose landscape is known by hand."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import nn

from swamp.algorithms import Plan
from swamp.cli.progress import Quiet
from swamp.datasets import DataOptions
from swamp.files import load_tensors
from swamp.runs import RunConfig, resume, start
from swamp.training import Task, TensorData, Training


def tiny(particles: int = 2, **changes) -> RunConfig:
    """A run of half a second: BatchNorm, augmentation, a tail with averaging, three cycles."""
    plan = Plan(sparsity=0.75, particles=(particles,), prune_fraction=(0.5,), ticket_epochs=1, barrier_threshold=1.0)
    training = Training(epochs=4, batch_size=64, lr=0.05, swa_fraction=0.5)
    config = RunConfig(
        "tiny", "digits", "mlp-bn-16", plan, training, DataOptions(examples=640), threads=1, backend="sequential"
    )
    return replace(config, **changes)


def go(config: RunConfig, path: Path, stop: Event | None = None, reporter=None):
    return start(config, path, reporter or Quiet(), stop or Event())


def go_on(path: Path):
    return resume(path, Quiet(), Event())


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run with three particles a cycle, and their paths."""
    path = tmp_path_factory.mktemp("run") / "run"
    go(tiny(3, trajectory_every=4), path)
    return path


class TwoWeights(nn.Module):
    """Its outputs are its weights, whatever the input."""

    def __init__(self, *weights: float):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weights], dtype=torch.float32))

    def forward(self, inputs):
        return self.weight.expand(len(inputs), -1)


def double_well(outputs, targets) -> torch.Tensor:
    """(w0^2 - 1)^2 + w1: minima at w0 = +-1, a hill of 1 between them, and a slope along w1."""
    del targets
    return ((outputs[:, 0] ** 2 - 1) ** 2 + outputs[:, 1]).mean()


def hill(outputs, targets) -> float:
    """An error in [0, 1] that follows the double well: half its height, and 1 where that is more."""
    return min(1.0, float(double_well(outputs, targets)) / 2)


@pytest.fixture
def well() -> Task:
    data = TensorData(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))

    class Unread(TensorData):
        def in_order(self, batch_size):
            raise AssertionError("the test data was read")

    return Task(data, Unread(data.inputs, data.targets), data, loss=double_well, metrics={}, error=hill)


def at(*weights: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor([weights])}


class StopAt(Quiet):
    """Asks the run to stop at the given step of all that it takes."""

    def __init__(self, step: int, stop: Event) -> None:
        self.left, self.stop = step, stop

    def training(self, cycle, index, count, step, total):
        self.left -= 1
        if self.left == 0:
            self.stop.set()


def killed_after(seconds: float, work) -> None:
    """Do `work` in a forked process and kill -9 it after so long."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def assert_same_tensors(a: Path, b: Path) -> None:
    """All files of tensors, paths among them, bit for bit."""
    names = sorted(path.relative_to(a) for path in a.rglob("*.safetensors"))
    assert names == sorted(path.relative_to(b) for path in b.rglob("*.safetensors"))
    for name in names:
        one, two = load_tensors(a / name)[0], load_tensors(b / name)[0]
        assert one.keys() == two.keys(), name
        assert all(torch.equal(one[key], two[key]) for key in one), name
