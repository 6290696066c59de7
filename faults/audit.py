"""Log of the processes of a run, in one file that all append to: training steps, saved snapshots and particles."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swamp.algorithms import Cycle
from swamp.backends import Particle
from swamp.runs import checkpoints, run_progress
from swamp.training.snapshot import Snapshot


def note(file: Path) -> None:
    """Log the training steps of this process, and what it saves, to `file`."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def line(*words: object) -> None:
        os.write(handle, (" ".join(map(str, words)) + "\n").encode())

    stepped, finished, keep = (
        run_progress.RunProgress.on_step,
        run_progress.RunProgress.on_finished,
        checkpoints.RunStore.keep_cycle,
    )

    def noted_stepped(
        self: run_progress.RunProgress, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]
    ) -> None:
        line("step", _place(self, index), step)
        stepped(self, index, step, total, snapshot)

    def noted_finished(self: run_progress.RunProgress, particle: Particle) -> None:
        finished(self, particle)
        if self.cycle is not None:
            line("particle", _place(self, particle.index), particle.steps)

    def noted_cycle(self: checkpoints.RunStore, cycle: Cycle) -> None:
        keep(self, cycle)
        line("cycle", f"{self.directory.path}/{cycle.index}", 0)

    save: Any = run_progress.save_snapshot

    def noted_save(path: Path, snapshot: Snapshot, run: str) -> None:
        save(path, snapshot, run)
        line("snapshot", path, snapshot.step)

    run_progress.RunProgress.on_step, run_progress.RunProgress.on_finished = noted_stepped, noted_finished
    checkpoints.RunStore.keep_cycle, run_progress.save_snapshot = noted_cycle, noted_save


def _place(told: run_progress.RunProgress, index: int) -> Path:
    return told.directory.snapshot(told.cycle, index)


@dataclass(frozen=True)
class Redone:
    """Work that was repeated."""

    particles: int = 0
    """Repeated steps of finished particles, or before a saved snapshot; must be 0."""
    steps: int = 0
    """Repeated steps after the last snapshot."""
    most: int = 0
    """Largest number of these in one particle after one fault."""
    interval: int = 0
    """Largest number of steps between consecutive snapshots of one particle."""


def redone(file: Path) -> Redone:
    """Count the repeated work in a log."""
    taken: dict[str, int] = {}
    kept: dict[str, int] = {}
    again: dict[str, int] = {}
    over: set[str] = set()
    particles = steps = most = interval = 0
    for line in file.read_text().splitlines() if file.exists() else []:
        what, place, text = line.split(" ")
        number = int(text)
        if what == "step":
            particles += place in over or number <= kept.get(place, 0)
            again[place] = again.get(place, 0) + 1 if number <= taken.get(place, 0) else 0
            steps += again[place] > 0
            most = max(most, again[place])
            taken[place] = max(number, taken.get(place, 0))
        elif what == "snapshot":
            interval = max(interval, number - kept.get(place, 0))
            kept[place] = number
        else:
            over.add(place)
    return Redone(particles, steps, most, interval)
