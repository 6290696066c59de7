"""Progress of a cycle's particles in a run directory: snapshots and paths while they train, each as it is finished."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Protocol

from swamp.algorithms import Cycle
from swamp.backends import Choice, Particle, Progress
from swamp.errors import CorruptFile, Interrupted
from swamp.files import load_metadata
from swamp.runs.directory import RunDirectory
from swamp.runs.read import unless_damaged
from swamp.runs.snapshot import load_snapshot, save_snapshot
from swamp.runs.trajectory import TrajectoryWriter, read_trajectory, trajectory_files
from swamp.training import Snapshot

_BEGUN = "Going on without it: this training begins again."


class Reporter(Protocol):
    """Told how far a run is; shows it to a person, or not."""

    def started(self, cycles: int) -> None:
        """A run of so many cycles begins or goes on."""
        ...

    def chosen(self, choice: Choice) -> None:
        """How particles are trained was chosen by timing."""
        ...

    def training(self, cycle: int | None, index: int, count: int, step: int, total: int) -> None:
        """Particle `index` of `count` of a cycle (None: the ticket) has taken `step` of `total` steps."""
        ...

    def finished(self, cycle: Cycle) -> None:
        """A cycle is finished, now or by an earlier session."""
        ...


@dataclass(eq=False)
class RunProgress(Progress):
    """Keeps particles and snapshots of one cycle as they come. `stop` is set from outside to end at the next step."""

    directory: RunDirectory
    reporter: Reporter
    stop: Event
    snapshot_seconds: float
    trajectory_every: int
    """Steps between two points of a particle's path (0: none is kept)."""
    cycle: int | None
    """None: the ticket's training."""
    count: int
    keep: bool = True
    """Whether trainings in progress are kept."""
    one_of: tuple[int, int] = (0, 1)
    """Which member of an ensemble it is, and of how many: its particle is told of as one of them."""
    began: float = field(default_factory=time.monotonic)
    saved: dict[int, float] = field(default_factory=dict[int, float])
    paths: dict[int, TrajectoryWriter] = field(default_factory=dict[int, TrajectoryWriter])
    begins: dict[int, str] = field(default_factory=dict[int, str])
    """The step of the first point of each path, which snapshots keep: a missing file is noticed by it."""

    def __post_init__(self) -> None:
        # The run directory is on a file system that all ranks share.
        self.address = {"folder": self.directory.folder, "cycle": self.cycle, "count": self.count}

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Show, save now and then, and stop where asked."""
        self.on_remote_step(index, step, total)
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
            # Asked for since the look above, it is for the next step: nothing is saved of this one.
            raise Interrupted("stopped.")

    def _save(self, index: int, taken: Snapshot) -> None:
        # The path first: a training that goes on from the snapshot does not come by these points again.
        if index in self.paths:
            self.paths[index].flush()
        file = self.directory.snapshot(self.cycle, index)
        begins = {"trajectory": self.begins[index]} if index in self.begins else {}
        save_snapshot(file, taken, {**self.directory.provenance(file), **begins})
        self.saved[index] = time.monotonic()

    def path(self, index: int) -> TrajectoryWriter | None:
        """Where the path of a particle is kept; None for the ticket, and for masks that change."""
        if self.cycle is None or not self.keep:
            return None
        return self.paths.setdefault(
            index, TrajectoryWriter(self.directory.trajectory(self.cycle, index), self.directory)
        )

    def on_remote_step(self, index: int, step: int, total: int) -> None:
        """Show the step of a particle, which another rank may train."""
        member, members = self.one_of
        self.reporter.training(self.cycle, index + member * self.count, members * self.count, step, total)

    def load_snapshot(self, index: int) -> Snapshot | None:
        """The snapshot on disk; where it, or the path up to it, is damaged, training begins again."""
        directory = self.directory
        file, path = directory.snapshot(self.cycle, index), None
        if self.cycle is not None and self.trajectory_every:
            path = directory.trajectory(self.cycle, index)

        def read() -> Snapshot:
            directory.verify_owner(file)
            snapshot = load_snapshot(file)
            if path and (begins := load_metadata(file).get("trajectory")):
                self._require_whole(path, int(begins), snapshot.step)
                self.begins[index] = begins
            return snapshot

        files = [file, *(trajectory_files(path) if path else [])]
        return unless_damaged(files, read, _BEGUN)

    def _require_whole(self, path: Path, begins: int, step: int) -> None:
        """Raise CorruptFile unless all points of a path up to `step` are there; it does not come by them again."""
        if not {*range(begins, step + 1, self.trajectory_every)} <= {*read_trajectory(path, self.directory)}:
            raise CorruptFile(f"{path} lacks points before step {step}: a file of it is missing.")

    def on_last_step(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Save it where its training is to be kept."""
        if self.keep:
            self._save(index, snapshot())

    def on_finished(self, particle: Particle) -> None:
        """Write the particle, then drop its snapshot. The ticket's training is kept as the ticket."""
        if self.cycle is not None:
            path = self.directory.particle(self.cycle, particle.index)
            # Also where none of it waits: a training may have been stopped at its last step.
            if self.trajectory_every and (taken := self.path(particle.index)):
                taken.finish()
            # The rank that trained it wrote it at once; rank 0, told of it later, need not write it again.
            if not path.exists():
                particle.save(path, self.directory.provenance(path))
            self.directory.snapshot(self.cycle, particle.index).unlink(missing_ok=True)
