"""The loop's store on disk: finished tickets, particles and cycles are read back, never computed again."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any, Protocol

from swamp.errors import Interrupted, SwampError
from swamp.files import digest, load_tensors, save_tensors, write_atomic
from swamp.methods import Cycle, Phase
from swamp.particles import Choice, Particle, Ticket
from swamp.runs.directory import RunDirectory, read_json, write_json
from swamp.runs.path import PathWriter
from swamp.runs.snapshot import load_phase, load_snapshot, save_phase, save_snapshot
from swamp.sparsity import Mask
from swamp.training import Snapshot


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


@dataclass(frozen=True)
class RunStore:
    """Store of one run directory. `stop` is set from outside to end the run at the next step."""

    directory: RunDirectory
    fingerprint: str
    reporter: Reporter
    stop: Event
    keep_particles: bool = True
    snapshot_seconds: float = 30.0
    announce: bool = True
    """Whether the reporter hears of finished cycles; members of an ensemble are not announced one by one."""
    folder: str = ""
    """Where `directory` lies below the run's own: a member's folder, or nothing."""
    phases: dict[int, float] = field(default_factory=dict[int, float])
    """When the phase of each cycle was last written, or first not."""
    path_every: int = 0
    """Steps between two points of a particle's path (0: none is kept)."""
    lines: dict[int, str] = field(default_factory=dict[int, str])
    """The line of each cycle in metrics.jsonl, as far as they were needed: each record is read once."""

    def ticket(self) -> Ticket | None:
        """The ticket on disk."""
        return Ticket.load(self.directory.ticket) if self.directory.ticket.exists() else None

    def keep_ticket(self, ticket: Ticket) -> None:
        """Write the ticket, then drop its snapshot."""
        ticket.save(self.directory.ticket)
        self.directory.snapshot(None, 0).unlink(missing_ok=True)

    def particle(self, cycle: int, index: int) -> Particle | None:
        """A particle on disk."""
        path = self.directory.particle(cycle, index)
        return Particle.load(path) if path.exists() else None

    def choice(self) -> Choice | None:
        """How an earlier session chose to train particles: a resumed run keeps to it, as ways round differently."""
        path = self.directory.backend
        return Choice.from_json(read_json(path)) if path.exists() else None

    def keep_choice(self, choice: Choice) -> None:
        """Write how particles are trained, and why."""
        write_json(self.directory.backend, choice.to_json())
        self.reporter.chosen(choice)

    def cycle(self, index: int) -> Cycle | None:
        """A finished cycle on disk, its files checked against the record."""
        if not self.directory.record(index).exists():
            return None
        line = read_json(self.directory.record(index))
        folder = self.directory.cycle(index)
        mask = Mask.load(folder / "mask.safetensors")
        weights, _ = load_tensors(folder / "mean.safetensors")
        if (digest(weights), mask.digest) != (line["digest"]["weights"], line["digest"]["mask"]):
            raise SwampError(
                f"mean.safetensors or mask.safetensors in {folder} is not the file its record was written with. "
                "Restore it, or delete that folder and all later cycle folders and resume."
            )
        cycle = Cycle.from_json(line, mask, weights)
        # A run killed right after the record was written has not told the world of this cycle yet.
        if not self._published(index):
            self.publish(cycle)
        self._tidy(cycle)
        self._announce(cycle)
        return cycle

    def keep_cycle(self, cycle: Cycle) -> None:
        """Write a finished cycle, its record last: where the record lies, all of it lies."""
        folder = self.directory.cycle(cycle.index)
        cycle.mask.require_zeros(cycle.weights)
        cycle.mask.save(folder / "mask.safetensors")
        save_tensors(folder / "mean.safetensors", cycle.weights)
        line = {**cycle.to_json(), "digest": {"weights": digest(cycle.weights), "mask": cycle.mask.digest}}
        write_json(self.directory.record(cycle.index), line)
        self.publish(cycle)
        self._tidy(cycle)
        self._announce(cycle)
        self.check_stop()

    def _tidy(self, cycle: Cycle) -> None:
        """Delete what a finished cycle needs no more."""
        self.directory.phase(cycle.index).unlink(missing_ok=True)
        for index in range(len(cycle.particles)):
            self.directory.snapshot(cycle.index, index).unlink(missing_ok=True)
            if not self.keep_particles:
                self.directory.particle(cycle.index, index).unlink(missing_ok=True)

    def publish(self, cycle: Cycle) -> None:
        """Bring the files that speak for the whole run up to this cycle."""
        for index in range(cycle.index + 1):
            # What trains single masks of another run has no cycles between.
            if index not in self.lines and self.directory.record(index).exists():
                self.lines[index] = json.dumps(read_json(self.directory.record(index))) + "\n"
        text = "".join(self.lines[index] for index in sorted(self.lines) if index <= cycle.index)
        cycle.mask.save(self.directory.mask)
        save_tensors(self.directory.model, cycle.weights)
        # Last: it tells how far the other two are.
        write_atomic(self.directory.metrics, text.encode())

    def _published(self, index: int) -> bool:
        metrics = self.directory.metrics
        return metrics.exists() and metrics.read_bytes().count(b"\n") > index

    def phase(self, cycle: int) -> Phase | None:
        """The particles of a cycle whose masks change, on disk."""
        return load_phase(self.directory.phase(cycle), self.fingerprint)

    def keep_phase(self, cycle: int, phase: Phase, *, due: bool = False) -> None:
        """Write them, if they are due or the last time is long enough ago."""
        now = time.monotonic()
        if due or now - self.phases.setdefault(cycle, now) > self.snapshot_seconds:
            save_phase(self.directory.phase(cycle), phase, self.fingerprint)
            self.phases[cycle] = now

    def progress(self, cycle: int | None, particles: int, *, keep: bool = True) -> "RunProgress":
        """Progress of one cycle's particles."""
        return RunProgress(self, cycle, particles, keep)

    def member(self, index: int) -> "RunStore":
        """The store of one member of an ensemble, in a folder of its own."""
        directory = self.directory.member(index)
        return replace(self, directory=directory, announce=False, folder=directory.path.name, phases={}, lines={})

    def opened(self, address: Any) -> "RunProgress":
        """The progress that another process, on the same run, has at this address."""
        directory = RunDirectory(self.directory.path / address["folder"])
        return replace(self, directory=directory, folder=address["folder"]).progress(address["cycle"], address["count"])

    def _announce(self, cycle: Cycle) -> None:
        if self.announce:
            self.reporter.finished(cycle)

    def check_stop(self) -> None:
        """Raise Interrupted if the run was asked to stop."""
        if self.stop.is_set():
            raise Interrupted("stopped.")


class RunProgress:
    """Keeps particles and snapshots of one cycle as they come."""

    def __init__(self, store: RunStore, cycle: int | None, count: int, keep: bool) -> None:
        self.store, self.cycle, self.count, self.keep = store, cycle, count, keep
        self.began = time.monotonic()
        self.saved: dict[int, float] = {}
        self.paths: dict[int, PathWriter] = {}

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Show, save now and then, and stop where asked."""
        store = self.store
        store.reporter.training(self.cycle, index, self.count, step, total)
        stopping = store.stop.is_set()
        due = stopping or time.monotonic() - self.saved.get(index, self.began) > store.snapshot_seconds
        path = self.path(index) if store.path_every and (step % store.path_every == 0 or step == total) else None
        if self.keep and (due or path):
            taken = snapshot()
            if path:
                path.add(step, taken.weights)
            if due:
                # The path first: a training that goes on from the snapshot does not come by these points again.
                if index in self.paths:
                    self.paths[index].flush()
                save_snapshot(store.directory.snapshot(self.cycle, index), taken, store.fingerprint)
                self.saved[index] = time.monotonic()
        store.check_stop()

    def path(self, index: int) -> PathWriter | None:
        """Where the path of a particle is kept; None for the ticket, and for masks that change."""
        if self.cycle is None or not self.keep:
            return None
        return self.paths.setdefault(index, PathWriter(self.store.directory.trajectory(self.cycle, index)))

    @property
    def address(self) -> Any:
        """See Addressed in particles/ranks.py: the run directory is on a file system that all ranks share."""
        return {"folder": self.store.folder, "cycle": self.cycle, "count": self.count}

    def elsewhere(self, index: int, step: int, total: int) -> None:
        """Show the step of a particle that another rank trains."""
        self.store.reporter.training(self.cycle, index, self.count, step, total)

    def unfinished(self, index: int) -> Snapshot | None:
        """The snapshot on disk."""
        return load_snapshot(self.store.directory.snapshot(self.cycle, index), self.store.fingerprint)

    def finished(self, particle: Particle) -> None:
        """Write the particle, then drop its snapshot. The ticket's training is kept as the ticket."""
        if self.cycle is not None:
            path = self.store.directory.particle(self.cycle, particle.index)
            # Also where none of it waits: a training may have been stopped at its last step.
            if self.store.path_every and (taken := self.path(particle.index)):
                taken.finish()
            # The rank that trained it wrote it at once; rank 0, told of it later, need not write it again.
            if not path.exists():
                particle.save(path)
            self.store.directory.snapshot(self.cycle, particle.index).unlink(missing_ok=True)
