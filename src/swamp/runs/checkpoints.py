"""Checkpoints of a run: finished tickets, particles and cycles are read from disk and never computed again."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from threading import Event
from typing import Any

from swamp.algorithms import Cycle
from swamp.algorithms.cycle import Divergence
from swamp.algorithms.store import Phase, Store
from swamp.backends import Particle, Ticket
from swamp.backends.autotune import Choice
from swamp.backends.ticket import TRUNK, Trunk
from swamp.errors import CorruptFile, Interrupted, SwampError, warn
from swamp.files import digest, load_metadata, load_tensors, quarantine, save_tensors, write_atomic
from swamp.masks import Mask
from swamp.runs.directory import RunDirectory, read_json
from swamp.runs.read import (
    read_choice,
    read_cycle,
    read_particle,
    read_record,
    read_ticket,
    unless_damaged,
    write_backend,
)
from swamp.runs.run_progress import Reporter, RunProgress
from swamp.runs.snapshot_files import load_phase, save_phase, save_trunk
from swamp.runs.trajectory import TrajectoryWriter

_TRAINED = "Continuing without it: it is trained again."


@dataclass(frozen=True)
class RunStore(Store):
    """The cycle loop's store in one run directory. If `stop` is set, the run ends at the next step.

    A damaged file is renamed and its content is computed again, with a warning. If that is not possible, SwampError is
    raised.
    """

    directory: RunDirectory
    reporter: Reporter
    stop: Event
    keep_particles: bool = True
    snapshot_seconds: float = 30.0
    announce: bool = True
    """Whether finished cycles are reported; those of an ensemble's members are not."""
    one_of: tuple[int, int] = (0, 1)
    """Index of this ensemble member, and number of members: the reporter counts particles over all members."""
    phases: dict[int, float] = field(default_factory=dict[int, float])
    """Time of the last write of each cycle's phase, or of its first update if it was not written yet."""
    trajectory_every: int = 0
    """Steps between two points of a particle's trajectory (0: no trajectory)."""
    chained: bool = True
    """Whether each cycle depends on the previous one; False if masks of another run are trained."""
    lines: dict[int, str] = field(default_factory=dict[int, str])
    """Cache of the lines of metrics.jsonl by cycle, so that each record is read once."""

    def ticket(self) -> Ticket | None:
        """The ticket on disk."""
        ticket = unless_damaged([self.directory.ticket], lambda: read_ticket(self.directory), _TRAINED)
        if ticket is not None:  # a run killed right after it wrote the ticket left its snapshot
            self.directory.snapshot(None, 0).unlink(missing_ok=True)
        return ticket

    def keep_ticket(self, ticket: Ticket) -> None:
        """Write the ticket, then delete its snapshot."""
        ticket.save(self.directory.ticket, self.directory.provenance(self.directory.ticket))
        self.directory.snapshot(None, 0).unlink(missing_ok=True)

    def particle(self, cycle: int, index: int) -> Particle | None:
        """A particle on disk."""
        path = self.directory.particle(cycle, index)
        return unless_damaged([path], lambda: read_particle(self.directory, cycle, index), _TRAINED)

    def choice(self) -> Choice | None:
        """The backend that an earlier session chose. A resumed run uses it again, as backends round differently."""
        try:
            return read_choice(self.directory)
        except CorruptFile as error:
            raise CorruptFile(
                f"{error} It states the backend, and backends round differently. Without a copy of it, delete it and "
                "resume: the choice in config.json is used."
            ) from error

    def keep_choice(self, choice: Choice) -> None:
        """Write the chosen backend, and the timings; also into config.json, so that a rerun gives the same bits."""
        # First: a run that is killed in between goes on with the choice in its configuration.
        write_backend(self.directory, choice.name)
        self.directory.write(self.directory.backend, choice.to_json())
        self.reporter.chosen(choice)

    def cycle(self, index: int) -> Cycle | None:
        """A finished cycle on disk; its files are checked against the record."""
        if not self.directory.record(index).exists():
            return None
        try:
            cycle = read_cycle(self.directory, index)
        except CorruptFile as error:
            self._quarantine(index, error)
            return None
        self._require_made_from(index)
        # A run killed right after it wrote the record has not updated the files of the whole run.
        if index == self.directory.last and not self._published(cycle):
            self.publish(cycle)
        self._tidy(cycle)
        self._announce(cycle)
        return cycle

    def keep_cycle(self, cycle: Cycle) -> None:
        """Write a finished cycle. The record is last: if it exists, all files of the cycle do."""
        directory, folder = self.directory, self.directory.cycle(cycle.index)
        cycle.mask.require_zeros(cycle.weights)
        mask, mean, record = folder / "mask.safetensors", folder / "mean.safetensors", directory.record(cycle.index)
        cycle.mask.save(mask, directory.provenance(mask))
        save_tensors(mean, cycle.weights, directory.provenance(mean))
        digests = {"weights": digest(cycle.weights), "mask": cycle.mask.digest, "made_from": self._origin(cycle.index)}
        directory.write(record, {**cycle.to_json(), "digest": digests})
        self.publish(cycle)
        self._tidy(cycle)
        self._announce(cycle)
        self.check_stop()

    def _tidy(self, cycle: Cycle) -> None:
        """Delete files that a finished cycle no longer needs."""
        self.directory.phase(cycle.index).unlink(missing_ok=True)
        # Particles beyond a barrier are in no record.
        trained = cycle.waves[-1].trained if cycle.waves else 0
        for index in {TRUNK, *range(trained), *(particle.index for particle in cycle.particles)}:
            self.directory.snapshot(cycle.index, index).unlink(missing_ok=True)
            if not self.keep_particles:
                self.directory.particle(cycle.index, index).unlink(missing_ok=True)
        if not self.keep_particles:
            self.directory.trunk(cycle.index).unlink(missing_ok=True)

    def publish(self, cycle: Cycle) -> None:
        """Update model, mask and metrics of the whole run to this cycle."""
        directory = self.directory
        for path in (directory.mask, directory.model, directory.metrics):
            if path.is_dir():
                quarantine(path)
        cycle.mask.save(directory.mask, directory.provenance(directory.mask))
        save_tensors(directory.model, cycle.weights, directory.provenance(directory.model))
        # Last: it shows that the other two are up to date.
        write_atomic(directory.metrics, self._lines(cycle.index))

    def _lines(self, index: int) -> bytes:
        """Records of all cycles up to this one, one line each."""
        return "".join(map(self._line, range(index + 1))).encode()

    def _line(self, index: int) -> str:
        """The record of a cycle as one line; empty without a record: runs on given masks may skip cycles."""
        if index not in self.lines and self.directory.record(index).exists():
            self.lines[index] = json.dumps(read_json(self.directory.record(index))) + "\n"
        return self.lines.get(index, "")

    def _published(self, cycle: Cycle) -> bool:
        """Whether model, mask and metrics are up to date; warns if they are neither that nor of an earlier cycle."""
        directory, text = self.directory, self._lines(cycle.index)
        try:
            written = directory.metrics.read_bytes() if directory.metrics.exists() else b""
            if written != text and (written.startswith(text) or _begins(written, text)):
                return False
            wrong = [] if written == text else [directory.metrics]
            wrong += [] if Mask.load(directory.mask) == cycle.mask else [directory.mask]
            weights, _ = load_tensors(directory.model)
            wrong += [] if digest(weights) == digest(cycle.weights) else [directory.model]
        except (CorruptFile, OSError) as error:
            wrong = [error]
        if wrong:
            warn(f"{wrong[0]}: it does not match the finished cycles. It is written again from them.")
        return not wrong

    def _quarantine(self, index: int, error: CorruptFile) -> None:
        """Rename the files of a damaged cycle, so that it counts as unfinished; raise if it has no particles."""
        folder, record = self.directory.cycle(index), self.directory.record(index)
        if not [*folder.glob("particle-*.safetensors"), *self.directory.path.glob("member-*")]:
            raise SwampError(
                f"{error} Without a copy, delete {record} and resume: cycle {index} is trained again. Later cycles are "
                "kept if the result is the same bit for bit."
            ) from error
        self.lines.pop(index, None)
        files = [folder / "mask.safetensors", folder / "mean.safetensors", record]
        kept = [str(quarantine(path)) for path in files if path.exists()]
        warn(f"{error} Continuing without it: cycle {index} is computed again. (Kept as {', '.join(kept)}.)")

    def _origin(self, index: int) -> str:
        """Digest of a cycle's inputs: the ticket, the previous cycle, and the same cycle of each ensemble member."""
        directory = self.directory
        ticket = load_metadata(directory.ticket).get("id", "") if directory.ticket.exists() else ""
        members = (RunDirectory(path) for path in sorted(directory.path.glob("member-*")))
        records = [json.loads(line)] if index and (line := self._line(index - 1)) else []
        records += [read_json(member.record(index)) for member in members if member.record(index).exists()]
        found = [record["digest"]["weights"] for record in records]
        return hashlib.sha256(" ".join([ticket, *found]).encode()).hexdigest()[:16] if self.chained else ""

    def _require_made_from(self, index: int) -> None:
        stated = read_record(self.directory, index)["digest"].get("made_from")
        if self.chained and stated != self._origin(index):
            before = f"cycle {index - 1}" if index else "ticket"
            raise SwampError(
                f"{self.directory.record(index)} was made from another {before} than the one on disk. Put back the "
                f"original, or move the folder of cycle {index} and all later ones away and resume."
            )

    def divergences(self) -> tuple[Divergence, ...]:
        """Diverged trainings, from disk."""
        path = self.directory.divergences
        return tuple(Divergence(**one) for one in self.directory.read(path)["trainings"]) if path.exists() else ()

    def keep_divergence(self, divergence: Divergence) -> None:
        """Delete the snapshot of the diverged training, then record it; killed in between, it diverges again."""
        snapshot = self.directory.snapshot(divergence.cycle, divergence.particle)
        snapshot.unlink(missing_ok=True)
        if divergence.cycle is not None:
            self.directory.phase(divergence.cycle).unlink(missing_ok=True)
            self.phases.pop(divergence.cycle, None)
            TrajectoryWriter(self.directory.trajectory(divergence.cycle, divergence.particle)).delete()
        trainings = [asdict(one) for one in (*self.divergences(), divergence)]
        self.directory.write(self.directory.divergences, {"trainings": trainings})

    def phase(self, cycle: int) -> Phase | None:
        """The particles of a cycle with dynamic masks, from disk."""
        path = self.directory.phase(cycle)
        again = "Continuing without it: the cycle starts again."
        return unless_damaged([path], lambda: self.directory.load(path, load_phase), again)

    def keep_phase(self, cycle: int, phase: Phase, *, due: bool = False) -> None:
        """Write a phase if it is `due`, or `snapshot_seconds` after the last write."""
        now = time.monotonic()
        if due or now - self.phases.setdefault(cycle, now) > self.snapshot_seconds:
            path = self.directory.phase(cycle)
            save_phase(path, phase, self.directory.provenance(path))
            self.phases[cycle] = now

    def trunk(self, cycle: int) -> Trunk | None:
        """The trunk of a cycle, from disk."""
        return self.progress(cycle, 1).load_trunk()

    def keep_trunk(self, cycle: int, trunk: Trunk) -> None:
        """Write the trunk, then delete its snapshot."""
        path = self.directory.trunk(cycle)
        save_trunk(path, trunk, self.directory.provenance(path))
        self.directory.snapshot(cycle, TRUNK).unlink(missing_ok=True)

    def progress(self, cycle: int | None, particles: int, *, keep: bool = True, trunk: int = 0) -> RunProgress:
        """Progress of one cycle's particles."""
        return RunProgress(
            reporter=self.reporter,
            cycle=cycle,
            count=particles,
            one_of=self.one_of,
            trunk=trunk,
            directory=self.directory,
            stop=self.stop,
            snapshot_seconds=self.snapshot_seconds,
            trajectory_every=self.trajectory_every,
            keep=keep,
        )

    def member(self, index: int, of: int = 1) -> "RunStore":
        """The store of one ensemble member of `of`, in its own folder."""
        return replace(
            self, directory=self.directory.member(index), announce=False, one_of=(index, of), phases={}, lines={}
        )

    def opened(self, address: Any) -> RunProgress:
        """The progress for the address that another process of the same run sent."""
        directory = self.directory.below(address["folder"])
        return replace(self, directory=directory).progress(address["cycle"], address["count"])

    def _announce(self, cycle: Cycle) -> None:
        if self.announce:
            self.reporter.finished(cycle)

    def check_stop(self) -> None:
        """Raise Interrupted if the run was asked to stop."""
        if self.stop.is_set():
            raise Interrupted("stopped.")


def _begins(written: bytes, text: bytes) -> bool:
    """Whether `written` consists of the first complete lines of `text`."""
    return text.startswith(written) and (not written or written.endswith(b"\n"))
