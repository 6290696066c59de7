"""Modes of running swamp, each as processes that start or continue the work in a folder."""

import json
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import audit
from child import Child, Fault, forked, started
from swamp.algorithms import Plan
from swamp.datasets.problem import DataOptions
from swamp.files import load_tensors
from swamp.runs.config import RunConfig
from swamp.runs.execute import prepare
from swamp.runs.study_queue import StudyDirectory
from swamp.training import Training

Faults = Callable[[int], Fault | None]
"""Number of a process -> its fault."""


def nothing(number: int) -> None:
    """No fault."""


def tiny(**changes: Any) -> RunConfig:
    """A run of a second with ticket, trajectories, SWA, and three cycles of two particles."""
    plan = Plan(sparsity=0.75, particles=(2,), prune_fraction=(0.5,), ticket_epochs=1, barrier_threshold=1.0)
    training = Training(epochs=4, batch_size=64, lr=0.05, swa_fraction=0.5)
    config = RunConfig("tiny", "digits", "mlp-16", plan, training, DataOptions(examples=640), threads=1)
    return replace(config, **{"snapshot_seconds": 0.02, "trajectory_every": 8, "backend": "sequential", **changes})


def of(particles: int, config: RunConfig, method: str = "swamp") -> RunConfig:
    """The configuration with another method and number of particles, or members."""
    return replace(config, plan=replace(config.plan, method=method, particles=(particles,)))


def chosen(config: RunConfig) -> RunConfig:
    """The configuration with numbers of particles that are chosen while they train."""
    return replace(config, plan=replace(config.plan, particles=("auto",), max_particles=4, least_gain=0.0))


def warm() -> None:
    """Import the modules that a run imports later, once for all children."""
    for name in ("torch._dynamo", "torch.func", "swamp.report"):
        import_module(name)
    prepare(tiny())


@dataclass(frozen=True)
class Mode:
    """One mode. Its processes are forks of this process, except for commands that start processes themselves."""

    name: str
    config: RunConfig
    slow: bool = False
    """Whether its processes are not forks, and take seconds to start."""

    def prepared(self, run: Path, reference: Path) -> None:
        """Make the files that `run` needs before the first process starts."""

    def begun(self, run: Path) -> bool:
        return (run / "config.json").exists()

    def command(self, run: Path) -> Sequence[object]:
        if self.begun(run):
            return ["resume", run, "--quiet"]
        config = run.with_suffix(".json")
        config.write_text(json.dumps(self.config.to_json()))
        return ["run", "--config", config, "--out", run, "--quiet"]

    def go(self, run: Path, faults: Faults = nothing) -> list[Child]:
        """Start the processes, or continue the run."""
        return [forked(self.command(run), log(run), with_audit(run, faults(0)))]

    def finished(self, run: Path) -> bool:
        return (run / "summary.json").exists()

    def different(self, reference: Path, run: Path) -> str:
        """The first difference to `reference`; empty if there is none."""
        return different(reference, run)


@dataclass(frozen=True)
class Process(Mode):
    """A new process, as a user starts it."""

    def go(self, run: Path, faults: Faults = nothing) -> list[Child]:
        return [started([sys.executable, "-m", "swamp", *self.command(run)], log(run))]


@dataclass(frozen=True)
class Analyze(Mode):
    """All analyses of a finished run."""

    def prepared(self, run: Path, reference: Path) -> None:
        if not run.exists():
            shutil.copytree(reference, run, ignore=shutil.ignore_patterns("*analysis*"))

    def command(self, run: Path) -> Sequence[object]:
        few = ["--examples", 64, "--curvature-examples", 32, "--points", 3]
        return ["analyze", run, *few, "--quiet"]

    def finished(self, run: Path) -> bool:
        return False


@dataclass(frozen=True)
class ForkedRanks(Mode):
    """Two ranks without torchrun, with the environment variables that torchrun sets."""

    def go(self, run: Path, faults: Faults = nothing) -> list[Child]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = self.command(run)
        return [
            forked(
                command, log(run), with_audit(run, faults(rank)), {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            )
            for rank in range(2)
        ]


@dataclass(frozen=True)
class Torchrun(Mode):
    """Two ranks under torchrun; the only child is torchrun."""

    def go(self, run: Path, faults: Faults = nothing) -> list[Child]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        return [started([*torchrun, "-m", "swamp", *self.command(run)], log(run))]


@dataclass(frozen=True)
class Workers(Mode):
    """Two workers of a study of three runs."""

    runs: int = 3

    def prepared(self, run: Path, reference: Path) -> None:
        seeds = {f"seed-{n}": replace(self.config, plan=replace(self.config.plan, seed=n)) for n in range(self.runs)}
        StudyDirectory.join(run, seeds).retry()

    def go(self, run: Path, faults: Faults = nothing) -> list[Child]:
        command = ["study", "--worker", run, "--wait"]
        return [forked(command, log(run), with_audit(run, faults(number))) for number in range(2)]

    def finished(self, run: Path) -> bool:
        return all((run / f"seed-{number}" / "summary.json").exists() for number in range(self.runs))


@dataclass(frozen=True)
class Study(Workers):
    """The same by `swamp study`, which is the only child and starts the workers."""

    def go(self, run: Path, faults: Faults = nothing) -> list[Child]:
        return [started([sys.executable, "-m", "swamp", "study", run, "--workers", 2, "--quiet"], log(run))]


MODES: dict[str, Mode] = {
    "sequential": Mode("sequential", tiny()),
    "threads": Mode("threads", tiny(backend="threads")),
    "vmapped": Mode("vmapped", tiny(backend="vmapped")),
    "ensemble": Mode("ensemble", of(3, tiny(backend="vmapped", model="mlp-100"), "imp-ensemble")),
    "auto": Mode("auto", chosen(tiny())),
    "late": Mode("late", of(2, tiny(), "swamp-late-carry")),
    "ranks": ForkedRanks("ranks", tiny()),
    "study": Workers("study", tiny()),
    "analyze": Analyze("analyze", tiny()),
    "compiled": Process("compiled", tiny(backend="vmapped"), slow=True),
    # One particle more than cores, which is trained alone at the end, in a network that rounds differently with two
    # threads. No fork: a child cannot use the threads that torch had in its parent, and would wait for them.
    "alone": Process("alone", of(3, tiny(backend="threads", threads=2, model="lenet-300-100")), slow=True),
    "torchrun": Torchrun("torchrun", tiny(), slow=True),
    "swamp study": Study("swamp-study", tiny(), slow=True),
}


def undisturbed(mode: Mode, folder: Path) -> tuple[Path, float]:
    """A run without a fault, and its approximate time in seconds."""
    run = folder / f"{mode.name}-undisturbed"
    if isinstance(mode, Analyze):
        finish(MODES["sequential"], run)
    mode.prepared(run, run)
    began = time.monotonic()
    finish(mode, run)
    return run, time.monotonic() - began


def finish(mode: Mode, run: Path, faults: Faults = nothing) -> list[int]:
    """Continue to the end; returns the exit codes."""
    children = mode.go(run, faults)
    while not any(codes := [child.code() for child in children]) and None in codes:
        time.sleep(0.002)
    if isinstance(mode, ForkedRanks) and any(codes):
        # As torchrun does: after one rank failed, all are asked to end, a little later than they detect it themselves.
        for child in children:
            child.wait_at_most(5.0)
            child.signal(signal.SIGTERM)
    return [child.wait() for child in children]


def log(run: Path) -> Path:
    """File with the output of all processes of a run."""
    return run.with_suffix(".log")


def with_audit(run: Path, fault: Fault | None) -> Fault:
    """The fault, in a process that also logs its steps: see audit.py."""

    def prepare() -> None:
        audit.note(run.with_suffix(".audit"))
        if fault is not None:
            fault()

    return prepare


def different(reference: Path, run: Path, *, records: bool = True) -> str:
    """Compare file names, weights and masks bit for bit, and with `records` every number except times."""
    there, here = _files(reference), _files(run)
    if there != here:
        return f"files {sorted(there ^ here)}"
    for name in sorted(there):
        if name.suffix == ".safetensors":
            one, two = load_tensors(reference / name)[0], load_tensors(run / name)[0]
            if one.keys() != two.keys() or not all(torch.equal(one[key], two[key]) for key in one):
                return str(name)
        elif records and name.name in _RECORDS and _values(reference, name) != _values(run, name):
            return str(name)
    return ""


_RECORDS = ("metrics.jsonl", "analysis.jsonl", "summary.json", "record.json", "config.json")


def _files(run: Path) -> set[Path]:
    # Locks and files of a session are not results.
    own = ("lock", ".lock", ".claim", ".analysis.jsonl.lock")
    found = {path.relative_to(run) for path in run.rglob("*") if path.is_file() and path.name not in own}
    return {name for name in found if name.parts[0] not in (".workers", "comparison")}


def _values(run: Path, name: Path) -> list[Any]:
    text = re.sub(rf"{re.escape(str(run.parent))}/[\w-]+", "", (run / name).read_text())
    values = [json.loads(line) for line in text.splitlines()] if name.suffix == ".jsonl" else [json.loads(text)]
    # Analyses run in the order of their cost, which a resume may change.
    return sorted((_without_time(value) for value in values), key=lambda value: str(value.get("key", "")))


def _without_time(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_time(inner) for key, inner in value.items() if key not in ("seconds", "run", "provenance")
        }
    return [_without_time(inner) for inner in value] if isinstance(value, list) else value
