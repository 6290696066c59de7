"""The loop's store on disk: finished tickets, particles and cycles are read back, never computed again."""

import hashlib
import json
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from threading import Event
from typing import Any

from swamp.algorithms import Cycle, Divergence, Phase
from swamp.backends import Choice, Particle, Ticket
from swamp.errors import CorruptFile, Interrupted, SwampError
from swamp.files import digest, load_metadata, load_tensors, save_tensors, set_aside, write_atomic
from swamp.masks import Mask
from swamp.runs.directory import RunDirectory, read_json
from swamp.runs.read import read_cycle, read_particle, read_record, read_ticket, unless_damaged
from swamp.runs.run_progress import Reporter, RunProgress
from swamp.runs.snapshot import load_phase, save_phase
from swamp.runs.trajectory import TrajectoryWriter

_TRAINED = "Going on without it: it is trained again."


@dataclass(frozen=True)
class RunStore:
    """Store of one run directory. `stop` is set from outside to end the run at the next step.

    What is damaged and can be trained or made again is: a warning says so, and the file is kept under another name.
    What cannot be is refused.
    """

    directory: RunDirectory
    reporter: Reporter
    stop: Event
    keep_particles: bool = True
    snapshot_seconds: float = 30.0
    announce: bool = True
    """Whether the reporter hears of finished cycles; members of an ensemble are not announced one by one."""
    one_of: tuple[int, int] = (0, 1)
    """Which member of an ensemble this is, and of how many: the reporter hears of its particle as of one of them."""
    phases: dict[int, float] = field(default_factory=dict[int, float])
    """When the phase of each cycle was last written, or first not."""
    trajectory_every: int = 0
    """Steps between two points of a particle's path (0: none is kept)."""
    chained: bool = True
    """Whether each cycle is made from the one before; not so where single masks of another run are trained."""
    lines: dict[int, str] = field(default_factory=dict[int, str])
    """The line of each cycle in metrics.jsonl, as far as they were needed: each record is read once."""

    def ticket(self) -> Ticket | None:
        """The ticket on disk."""
        return unless_damaged([self.directory.ticket], lambda: read_ticket(self.directory), _TRAINED)

    def keep_ticket(self, ticket: Ticket) -> None:
        """Write the ticket, then drop its snapshot."""
        ticket.save(self.directory.ticket, self.directory.provenance(self.directory.ticket))
        self.directory.snapshot(None, 0).unlink(missing_ok=True)

    def particle(self, cycle: int, index: int) -> Particle | None:
        """A particle on disk."""
        path = self.directory.particle(cycle, index)
        return unless_damaged([path], lambda: read_particle(self.directory, cycle, index), _TRAINED)

    def choice(self) -> Choice | None:
        """How an earlier session chose to train particles: a resumed run keeps to it, as ways round differently."""
        path = self.directory.backend
        try:
            return Choice.from_json(self.directory.read(path)) if path.exists() else None
        except CorruptFile as error:
            raise CorruptFile(
                f"{error} It says how particles are trained, by which sums are rounded. Without a copy of it, delete "
                "it and resume: the ways are timed anew."
            ) from error

    def keep_choice(self, choice: Choice) -> None:
        """Write how particles are trained, and why."""
        self.directory.write(self.directory.backend, choice.to_json())
        self.reporter.chosen(choice)

    def cycle(self, index: int) -> Cycle | None:
        """A finished cycle on disk, its files checked against the record."""
        if not self.directory.record(index).exists():
            return None
        try:
            cycle = read_cycle(self.directory, index)
        except CorruptFile as error:
            self._set_aside(index, error)
            return None
        self._require_made_from(index)
        # A run killed right after the record was written has not told the world of this cycle yet.
        if index == self.directory.last and not self._published(cycle):
            self.publish(cycle)
        self._tidy(cycle)
        self._announce(cycle)
        return cycle

    def keep_cycle(self, cycle: Cycle) -> None:
        """Write a finished cycle, its record last: where the record lies, all of it lies."""
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
        """Delete what a finished cycle needs no more."""
        self.directory.phase(cycle.index).unlink(missing_ok=True)
        for particle in cycle.particles:
            self.directory.snapshot(cycle.index, particle.index).unlink(missing_ok=True)
            if not self.keep_particles:
                self.directory.particle(cycle.index, particle.index).unlink(missing_ok=True)

    def publish(self, cycle: Cycle) -> None:
        """Bring the files that speak for the whole run up to this cycle."""
        directory = self.directory
        for path in (directory.mask, directory.model, directory.metrics):
            if path.is_dir():
                set_aside(path)
        cycle.mask.save(directory.mask, directory.provenance(directory.mask))
        save_tensors(directory.model, cycle.weights, directory.provenance(directory.model))
        # Last: it tells how far the other two are.
        write_atomic(directory.metrics, self._lines(cycle.index))

    def _lines(self, index: int) -> bytes:
        """The records up to a cycle, a line each."""
        return "".join(map(self._line, range(index + 1))).encode()

    def _line(self, index: int) -> str:
        """The record of a cycle; nothing where there is none, as what trains single masks of another run skips some."""
        if index not in self.lines and self.directory.record(index).exists():
            self.lines[index] = json.dumps(read_json(self.directory.record(index))) + "\n"
        return self.lines.get(index, "")

    def _published(self, cycle: Cycle) -> bool:
        """Whether they are what `publish` would write; where they are neither that nor of before, a warning."""
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
            _warn(f"{wrong[0]}: not what the finished cycles say. It is written again from them.")
        return not wrong

    def _set_aside(self, index: int, error: CorruptFile) -> None:
        """Make a damaged cycle one that is not finished, if what it is made of was kept; else raise."""
        folder, record = self.directory.cycle(index), self.directory.record(index)
        if not [*folder.glob("particle-*.safetensors"), *self.directory.path.glob("member-*")]:
            raise SwampError(
                f"{error} Without a copy, delete {record} and resume: cycle {index} is trained again. Cycles after it "
                "stay if it comes out as it was, to the last bit."
            ) from error
        self.lines.pop(index, None)
        files = [folder / "mask.safetensors", folder / "mean.safetensors", record]
        kept = [str(set_aside(path)) for path in files if path.exists()]
        _warn(f"{error} Going on without it: cycle {index} is made again. (Set aside: {', '.join(kept)}.)")

    def _origin(self, index: int) -> str:
        """Fingerprint of what a cycle is made from: the ticket, the cycle before it, and those of members."""
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
                f"{self.directory.record(index)} was made from another {before} than lies there now. Put back the one "
                f"it was made from, or move the folder of cycle {index} and all later ones away and resume."
            )

    def divergences(self) -> tuple[Divergence, ...]:
        """Trainings that broke, on disk."""
        path = self.directory.broken
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
        self.directory.write(self.directory.broken, {"trainings": trainings})

    def phase(self, cycle: int) -> Phase | None:
        """The particles of a cycle whose masks change, on disk."""
        path = self.directory.phase(cycle)

        def read() -> Phase:
            self.directory.verify_owner(path)
            return load_phase(path)

        return unless_damaged([path], read, "Going on without it: the cycle is begun again.")

    def keep_phase(self, cycle: int, phase: Phase, *, due: bool = False) -> None:
        """Write them, if they are due or the last time is long enough ago."""
        now = time.monotonic()
        if due or now - self.phases.setdefault(cycle, now) > self.snapshot_seconds:
            path = self.directory.phase(cycle)
            save_phase(path, phase, self.directory.provenance(path))
            self.phases[cycle] = now

    def progress(self, cycle: int | None, particles: int, *, keep: bool = True) -> RunProgress:
        """Progress of one cycle's particles."""
        return RunProgress(
            self.directory,
            self.reporter,
            self.stop,
            self.snapshot_seconds,
            self.trajectory_every,
            cycle,
            particles,
            keep,
            self.one_of,
        )

    def member(self, index: int, of: int = 1) -> "RunStore":
        """The store of one of so many members of an ensemble, in a folder of its own."""
        return replace(
            self, directory=self.directory.member(index), announce=False, one_of=(index, of), phases={}, lines={}
        )

    def opened(self, address: Any) -> RunProgress:
        """The progress that another process, on the same run, has at this address."""
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
    """Whether `written` is the first whole lines of `text`."""
    return text.startswith(written) and (not written or written.endswith(b"\n"))


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
