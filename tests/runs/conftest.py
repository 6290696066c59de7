import json
import os
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch

from swamp.algorithms import Plan
from swamp.datasets.problem import DataOptions
from swamp.files import load_tensors
from swamp.runs.config import RunConfig
from swamp.runs.execute import resume, start
from swamp.runs.run_progress import Reporter
from swamp.training import Training


def tiny(**changes) -> RunConfig:
    """A run of half a second with everything in it: BatchNorm, augmentation, a tail with averaging, three cycles.

    A snapshot is written where it is stopped; one after each step (`snapshot_seconds=1e-9`) would double the time.
    """
    plan = Plan(sparsity=0.75, particles=(2,), prune_fraction=(0.5,), ticket_epochs=1, barrier_threshold=1.0)
    training = Training(epochs=4, batch_size=64, lr=0.05, swa_fraction=0.5)
    config = RunConfig(
        "tiny", "digits", "mlp-16", plan, training, DataOptions(examples=640), threads=1, snapshot_seconds=1e9
    )
    return replace(config, **changes)


@pytest.fixture
def config() -> RunConfig:
    return tiny()


def go(config: RunConfig, path: Path):
    return start(config, path, Reporter(), Event())


def go_on(path: Path):
    return resume(path, Reporter(), Event())


def in_child(work) -> int:
    """Run `work` in a forked process (no import to wait for); returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def kill_after(pid: int, seconds: float) -> int:
    """Kill -9 the child after so long; returns its wait status."""
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def killed_and_resumed(config: RunConfig, run: Path, seconds: Sequence[float]) -> None:
    """Start or resume a run and kill -9 it after so long, again and again; then let it finish."""

    def work() -> None:
        go_on(run) if (run / "config.json").exists() else go(config, run)

    for pause in seconds:
        kill_after(in_child(work), pause)
    work()


def without_time(record: dict) -> dict:
    """A record without what a clock said."""
    kept = {key: value for key, value in record.items() if key not in ("seconds", "run", "provenance")}
    for key in ("particles", "cycles"):
        if key in kept:
            kept[key] = [without_time(inner) for inner in kept[key]]
    if "total" in kept:
        kept["total"] = without_time(kept["total"])
    return kept


def assert_same_outcome(a: Path, b: Path) -> None:
    """Weights and masks bit for bit, and every number that is not a time."""
    for name in sorted(path.relative_to(a) for path in a.rglob("*.safetensors")):
        one, two = load_tensors(a / name)[0], load_tensors(b / name)[0]
        assert one.keys() == two.keys(), name
        assert all(torch.equal(one[key], two[key]) for key in one), name
    lines = [[json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (a, b)]
    assert [without_time(line) for line in lines[0]] == [without_time(line) for line in lines[1]]


class StopAt(Reporter):
    """Asks the run to stop at the given step of all that it takes."""

    def __init__(self, step: int, stop: Event) -> None:
        self.left, self.stop = step, stop

    def training(self, at):
        self.left -= 1
        if self.left == 0:
            self.stop.set()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run's directory and summary; copy the directory before changing it."""
    path = tmp_path_factory.mktemp("run") / "run"
    return path, go(tiny(), path)
