"""Runs of half a second, and ways to interrupt and compare them."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import torch

from swamp.algorithms import Plan
from swamp.analysis.analysis_tasks import Analysis, AnalysisSettings, analyze
from swamp.analysis.run_data import RunData
from swamp.datasets.problem import DataOptions
from swamp.files import load_tensors
from swamp.runs.config import RunConfig
from swamp.runs.execute import resume, start
from swamp.runs.run_progress import Reporter, TrainingStep
from swamp.training import TensorData, Training


def tiny(particles: int = 2, **changes: Any) -> RunConfig:
    """BatchNorm, augmentation, SWA, three cycles; `changes` are fields of the configuration."""
    plan = Plan(sparsity=0.75, particles=(particles,), prune_fraction=(0.5,), ticket_epochs=1, barrier_threshold=1.0)
    training = Training(epochs=4, batch_size=64, lr=0.05, swa_fraction=0.5)
    config = RunConfig(
        "tiny", "digits", "mlp-bn-16", plan, training, DataOptions(examples=640), threads=1, backend="sequential"
    )
    return replace(config, **changes)


def go(config: RunConfig, path: Path, stop: Event | None = None, reporter: Any = None) -> Any:
    """Start the run."""
    return start(config, path, reporter or Reporter(), stop or Event())


def go_on(path: Path) -> Any:
    """Resume the run."""
    return resume(path, Reporter(), Event())


def run(
    path: Path, particles: int = 3, method: str = "swamp", keep_checkpoints: str = "particles", **changes: Any
) -> Path:
    """A finished run; `changes` are fields of the plan."""
    config = tiny(particles, keep_checkpoints=keep_checkpoints)
    go(replace(config, plan=replace(config.plan, method=method, **changes)), path)
    return path


def records_of(run_data: RunData, analysis: Analysis, settings: AnalysisSettings) -> Iterator[Mapping[str, Any]]:
    """The record of each task of an analysis."""
    return analyze(run_data, analysis(run_data, settings), settings)


class Unread(TensorData):
    """Data that raises when it is read."""

    def in_order(self, batch_size: int) -> Any:
        raise AssertionError("the test data was read")


def blind(run_data: RunData) -> RunData:
    """The same run with test data that raises when it is read."""
    task = run_data.task
    return replace(run_data, task=replace(task, test=Unread(task.test.inputs, task.test.targets)))


class StopAt(Reporter):
    """Stops the run at the given training step, counted over all trainings."""

    def __init__(self, step: int, stop: Event) -> None:
        self.left, self.stop = step, stop

    def training(self, at: TrainingStep) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop.set()


def killed_after(seconds: float, work: Any) -> None:
    """Call `work` in a forked process, and kill that process with SIGKILL after `seconds`."""
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
    """Both folders have the same tensor files, equal bit for bit; trajectories are among them."""
    names = sorted(path.relative_to(a) for path in a.rglob("*.safetensors"))
    assert names == sorted(path.relative_to(b) for path in b.rglob("*.safetensors"))
    for name in names:
        one, two = load_tensors(a / name)[0], load_tensors(b / name)[0]
        assert one.keys() == two.keys(), name
        assert all(torch.equal(one[key], two[key]) for key in one), name
