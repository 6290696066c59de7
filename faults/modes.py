"""The ways in which swamp runs, each as processes that begin or go on with what lies in a folder."""

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
from swamp.datasets import DataOptions
from swamp.files import load_tensors
from swamp.runs import RunConfig, StudyDirectory, prepare
from swamp.training import Training

Faults = Callable[[int], Fault | None]
"""Number of a process -> what goes wrong in it."""


def nothing(number: int) -> None:
    """No fault."""


def tiny(**changes: Any) -> RunConfig:
    """A run of a second with everything in it: a ticket, paths, a tail with averaging, three cycles of two."""
    plan = Plan(sparsity=0.75, particles=(2,), prune_fraction=(0.5,), ticket_epochs=1, barrier_threshold=1.0)
    training = Training(epochs=4, batch_size=64, lr=0.05, swa_fraction=0.5)
    config = RunConfig("tiny", "digits", "mlp-16", plan, training, DataOptions(examples=640), threads=1)
    return replace(config, **{"snapshot_seconds": 0.02, "trajectory_every": 8, "backend": "sequential", **changes})


def of(particles: int, config: RunConfig, method: str = "swamp") -> RunConfig:
    """The same of another method and as many particles, or members."""
    return replace(config, plan=replace(config.plan, method=method, particles=(particles,)))


def warm() -> None:
    """Import what a run imports on its way, once for all children."""
    for name in ("torch._dynamo", "torch.func", "swamp.report"):
        import_module(name)
    prepare(tiny())


@dataclass(frozen=True)
class Mode:
    """One way to run. Processes are forks of this one, but for the commands that start processes themselves."""

    name: str
    config: RunConfig
    slow: bool = False
    """Its processes are not forks: they take seconds to start."""

    def prepared(self, run: Path, reference: Path) -> None:
        """What must lie in `run` before the first process starts."""

    def begun(self, run: Path) -> bool:
        return (run / "config.json").exists()

    def command(self, run: Path) -> Sequence[object]:
        if self.begun(run):
            return ["resume", run, "--quiet"]
        config = run.with_suffix(".json")
        config.write_text(json.dumps(self.config.to_json()))
        return ["run", "--config", config, "--out", run, "--quiet"]

    def go(self, run: Path, faults: Faults = nothing) -> list[Child]:
        """Begin, or go on."""
        return [forked(self.command(run), log(run), with_audit(run, faults(0)))]

    def finished(self, run: Path) -> bool:
        return (run / "summary.json").exists()

    def different(self, reference: Path, run: Path) -> str:
        """What is not as in `reference`; empty where all is."""
        return different(reference, run)


@dataclass(frozen=True)
class Process(Mode):
    """A process of its own, as people start it."""

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
    """Two ranks without torchrun: the variables that it sets are all that a rank knows of it."""

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
    """Two ranks under torchrun; the one child is torchrun."""

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
    """The same by the command itself; the one child is the command, whose workers are its children."""

    def go(self, run: Path, faults: Faults = nothing) -> list[Child]:
        return [started([sys.executable, "-m", "swamp", "study", run, "--workers", 2, "--quiet"], log(run))]


MODES: dict[str, Mode] = {
    "sequential": Mode("sequential", tiny()),
    "threads": Mode("threads", tiny(backend="threads")),
    "vmapped": Mode("vmapped", tiny(backend="vmapped")),
    "ensemble": Mode("ensemble", of(3, tiny(backend="vmapped", model="mlp-100"), "imp-ensemble")),
    "ranks": ForkedRanks("ranks", tiny()),
    "study": Workers("study", tiny()),
    "analyze": Analyze("analyze", tiny()),
    "compiled": Process("compiled", tiny(backend="vmapped"), slow=True),
    # One particle more than cores, left alone at the end, in a network that rounds otherwise with two threads. No fork:
    # a child cannot use the threads that torch had in its parent, and waits for them.
    "alone": Process("alone", of(3, tiny(backend="threads", threads=2, model="lenet-300-100")), slow=True),
    "torchrun": Torchrun("torchrun", tiny(), slow=True),
    "swamp study": Study("swamp-study", tiny(), slow=True),
}


def undisturbed(mode: Mode, folder: Path) -> tuple[Path, float]:
    """A run that nothing happened to, and about how long it takes."""
    run = folder / f"{mode.name}-undisturbed"
    if isinstance(mode, Analyze):
        finish(MODES["sequential"], run)
    mode.prepared(run, run)
    began = time.monotonic()
    finish(mode, run)
    return run, time.monotonic() - began


def finish(mode: Mode, run: Path, faults: Faults = nothing) -> list[int]:
    """Go on to the end; the exit codes."""
    children = mode.go(run, faults)
    while not any(codes := [child.code() for child in children]) and None in codes:
        time.sleep(0.002)
    if isinstance(mode, ForkedRanks) and any(codes):
        # As torchrun does: one ended badly, so all are asked to, a moment after they may have noticed by themselves.
        for child in children:
            child.wait_at_most(5.0)
            child.signal(signal.SIGTERM)
    return [child.wait() for child in children]


def log(run: Path) -> Path:
    """Where all that processes of a run say is collected."""
    return run.with_suffix(".log")


def with_audit(run: Path, fault: Fault | None) -> Fault:
    """The fault, in a process that also notes down what it does."""

    def prepare() -> None:
        audit.note(run.with_suffix(".audit"))
        if fault is not None:
            fault()

    return prepare


def different(reference: Path, run: Path, *, records: bool = True) -> str:
    """Weights and masks bit for bit, every number that is not a time (of `records`), and no file more or less."""
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
    # Locks and what names this very session belong to no result.
    own = ("lock", ".lock", ".claim", ".analysis.jsonl.lock")
    found = {path.relative_to(run) for path in run.rglob("*") if path.is_file() and path.name not in own}
    return {name for name in found if name.parts[0] not in (".workers", "comparison")}


def _values(run: Path, name: Path) -> list[Any]:
    text = re.sub(rf"{re.escape(str(run.parent))}/[\w-]+", "", (run / name).read_text())
    values = [json.loads(line) for line in text.splitlines()] if name.suffix == ".jsonl" else [json.loads(text)]
    # Analyses are done in the order in which they were cheap, which a resume may change.
    return sorted((_without_time(value) for value in values), key=lambda value: str(value.get("key", "")))


def _without_time(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_time(inner) for key, inner in value.items() if key not in ("seconds", "run", "provenance")
        }
    return [_without_time(inner) for inner in value] if isinstance(value, list) else value
