"""Progress of a cycle's particles: snapshots and trajectories during training, and each finished particle."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Self

from swamp.algorithms import Cycle
from swamp.backends import Particle, Progress
from swamp.backends.autotune import Choice
from swamp.backends.ticket import TRUNK, Trunk
from swamp.errors import CorruptFile, Interrupted
from swamp.files import load_metadata
from swamp.runs.directory import RunDirectory
from swamp.runs.overview import Overview
from swamp.runs.read import read_particle, unless_damaged
from swamp.runs.snapshot_files import load_snapshot, load_trunk, save_snapshot
from swamp.runs.trajectory import TrajectoryWriter, read_trajectory, trajectory_files
from swamp.training.snapshot import LazySnapshot, Snapshot

_RESTARTED = "Continuing without it: this training starts again."


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """A particle has taken a step."""

    cycle: int | None
    """None: the ticket's training."""
    index: int
    """Of the particle."""
    count: int
    """Particles of the cycle."""
    step: int
    total: int
    """Steps of this training."""
    loss: Callable[[], float] = lambda: math.nan
    """Gives the mean training loss of the present epoch, or of the last one; it waits for the device. NaN: another
    process trains the particle."""
    lr: float = math.nan
    """Learning rate of the step; NaN: not known."""
    what: str = ""
    """What is trained, in words; empty: the ticket, or a particle of the cycle."""
    trunk: int = 0
    """Steps of the trunk that the particles of the cycle share, which is trained once (0: there is none)."""

    @property
    def in_trunk(self) -> bool:
        """Whether it is a step of the trunk."""
        return self.step <= self.trunk

    def with_values(self, snapshot: Callable[[], Snapshot]) -> "TrainingStep":
        """With the loss and the learning rate, where the trainer says them."""
        known = isinstance(snapshot, LazySnapshot)
        return replace(self, loss=snapshot.loss, lr=snapshot.lr) if known else self


class Reporter:
    """Callbacks that report the progress of a run, for example to a terminal; a context manager around the run.

    This base class shows nothing.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        """The run ends."""

    def started(self, run: Overview) -> None:
        """A run starts or is resumed."""

    def chosen(self, choice: Choice) -> None:
        """A backend was chosen by timing."""

    def part(self, done: int, parts: int, what: str) -> None:
        """Of `parts` tasks, called `what`, `done` are finished."""

    def stage(self, name: str, *, once: bool = False) -> None:
        """Work other than training begins, e.g. "evaluating cycle 3". once: it is not repeated in every cycle."""

    def training(self, at: TrainingStep) -> None:
        """A particle has taken a step."""

    def finished(self, cycle: Cycle) -> None:
        """A cycle is finished, in this session or an earlier one."""


class Reporters(Reporter):
    """Passes every event on to several reporters; a context manager that enters them all."""

    def __init__(self, *reporters: Reporter) -> None:
        self.reporters, self.entered = reporters, ExitStack()
        for event in [name for name in vars(Reporter) if not name.startswith("_")]:
            setattr(self, event, partial(self._tell, event))

    def __enter__(self) -> "Reporters":
        for reporter in self.reporters:
            self.entered.enter_context(reporter)
        return self

    def __exit__(self, *error: Any) -> None:
        self.entered.__exit__(*error)

    def _tell(self, event: str, *values: Any, **options: Any) -> None:
        for reporter in self.reporters:
            getattr(reporter, event)(*values, **options)


@dataclass(eq=False, kw_only=True)
class ReportedProgress(Progress):
    """Reports the steps and stages of one cycle's particles."""

    reporter: Reporter
    cycle: int | None
    """None: the ticket's training."""
    count: int
    one_of: tuple[int, int] = (0, 1)
    """Index of this ensemble member, and number of members: the reporter counts particles over all members."""
    trunk: int = 0
    """Steps of the trunk that these particles share."""

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Report the step."""
        self.reporter.training(self._at(index, step, total).with_values(snapshot))

    def on_remote_step(self, index: int, step: int, total: int) -> None:
        """Report the step of a particle, which may be trained by another rank."""
        self.reporter.training(self._at(index, step, total))

    def on_stage(self, name: str, *, once: bool = False) -> None:
        """Report the stage."""
        self.reporter.stage(name, once=once)

    def _at(self, index: int, step: int, total: int) -> TrainingStep:
        member, members = self.one_of
        # The first particle stands for the trunk.
        place = max(index, 0) + member * self.count
        return TrainingStep(self.cycle, place, members * self.count, step, total, trunk=self.trunk)


@dataclass(eq=False, kw_only=True)
class RunProgress(ReportedProgress):
    """Writes particles and snapshots of one cycle. If `stop` is set, training ends at the next step."""

    directory: RunDirectory
    stop: Event
    snapshot_seconds: float
    trajectory_every: int
    """Steps between two points of a particle's trajectory (0: no trajectory)."""
    keep: bool = True
    """Whether snapshots and trajectories are written."""
    began: float = field(default_factory=time.monotonic)
    saved: dict[int, float] = field(default_factory=dict[int, float])
    paths: dict[int, TrajectoryWriter] = field(default_factory=dict[int, TrajectoryWriter])
    begins: dict[int, str] = field(default_factory=dict[int, str])
    """First step of each trajectory. Snapshots state it, so that a missing trajectory file is noticed."""

    def __post_init__(self) -> None:
        # The run directory is on a file system that all ranks share.
        self.address = {"folder": self.directory.folder, "cycle": self.cycle, "count": self.count}

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Report the step, save a snapshot or trajectory point if one is due, and stop if asked."""
        super().on_step(index, step, total, snapshot)
        stopping = self.stop.is_set()
        due = stopping or time.monotonic() - self.saved.get(index, self.began) > self.snapshot_seconds
        path = (
            self.path(index) if self.trajectory_every and (step % self.trajectory_every == 0 or step == total) else None
        )
        if self.keep and (due or path):
            taken = snapshot()
            if path:
                path.add(step, taken.weights)
                self.begins.setdefault(index, str(step))
            if due:
                self._save(index, taken)
        if stopping:
            # A stop that is set after the check above takes effect at the next step.
            raise Interrupted("stopped.")

    def _save(self, index: int, taken: Snapshot) -> None:
        # The trajectory first: training resumed from the snapshot does not repeat these steps.
        if index in self.paths:
            self.paths[index].flush()
        file = self.directory.snapshot(self.cycle, index)
        begins = {"trajectory": self.begins[index]} if index in self.begins else {}
        save_snapshot(file, taken, {**self.directory.provenance(file), **begins})
        self.saved[index] = time.monotonic()

    def path(self, index: int) -> TrajectoryWriter | None:
        """Writer of a particle's trajectory; None for a ticket or trunk, and for dynamic masks."""
        if self.cycle is None or index == TRUNK or not self.keep:
            return None
        return self.paths.setdefault(
            index, TrajectoryWriter(self.directory.trajectory(self.cycle, index), self.directory)
        )

    def load_particle(self, index: int) -> Particle | None:
        """A particle that another rank has finished."""
        if self.cycle is None or not self.directory.particle(self.cycle, index).exists():
            return None
        return read_particle(self.directory, self.cycle, index)

    def load_trunk(self) -> Trunk | None:
        """The trunk on disk; None if there is none, or it is damaged: it is trained again."""
        assert self.cycle is not None
        file = self.directory.trunk(self.cycle)
        return unless_damaged([file], lambda: self.directory.load(file, load_trunk), _RESTARTED)

    def load_snapshot(self, index: int) -> Snapshot | None:
        """The snapshot on disk; None if there is none, or it or its trajectory is damaged: training starts again."""
        directory = self.directory
        file, path = directory.snapshot(self.cycle, index), None
        if self.cycle is not None and self.trajectory_every and index != TRUNK:
            path = directory.trajectory(self.cycle, index)

        def read() -> Snapshot:
            snapshot = directory.load(file, load_snapshot)
            if path and (begins := load_metadata(file).get("trajectory")):
                self._require_whole(path, int(begins), snapshot.step)
                self.begins[index] = begins
            return snapshot

        files = [file, *(trajectory_files(path) if path else [])]
        return unless_damaged(files, read, _RESTARTED)

    def _require_whole(self, path: Path, begins: int, step: int) -> None:
        """Raise CorruptFile unless the trajectory has all points up to `step`, which are not recorded again."""
        if not {*range(begins, step + 1, self.trajectory_every)} <= {*read_trajectory(path, self.directory)}:
            raise CorruptFile(f"{path} lacks points before step {step}: one of its files is missing.")

    def on_last_step(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Called after the last batched step. Save a snapshot: resuming a smaller stack would change rounding."""
        if self.keep:
            self._save(index, snapshot())

    def on_finished(self, particle: Particle) -> None:
        """Write the particle, then delete its snapshot. The store writes tickets and trunks itself."""
        if self.cycle is not None and particle.index != TRUNK:
            path = self.directory.particle(self.cycle, particle.index)
            # Also if no points are in memory: a training may have been stopped after its last step.
            if self.trajectory_every and (taken := self.path(particle.index)):
                taken.finish()
            particle.save(path, self.directory.provenance(path))
            self.directory.snapshot(self.cycle, particle.index).unlink(missing_ok=True)
