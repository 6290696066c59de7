"""Distributed: the particles of a cycle trained by the ranks of a torchrun job.

Rank 0 runs the cycle loop. For each call of `train` it publishes a job; every rank trains its share of the particles,
stores them through the progress (in the run directory, which all ranks share), and rank 0 reads them back. Rank 0
takes their mean in the order of their indices: the order of a reduction over ranks, and so its rounding, would depend
on the number of ranks. Shares are fixed and not taken first come, first served: the rounding of a batched backend
depends on which particles it trains together.
"""

import gc
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from swamp.backends.autotune import Autotune
from swamp.backends.base import Backend, ForwardingProgress, Progress, TrainRequest
from swamp.backends.coordinator import Coordinator, JobEnded
from swamp.backends.data_parallel import DataParallel, GroupProgress
from swamp.backends.particle import Particle
from swamp.backends.ticket import Ticket, Trunk
from swamp.errors import CorruptFile, Diverged, Interrupted, SwampError
from swamp.masks import Mask
from swamp.training import Seed, Training
from swamp.training.shard import Shard
from swamp.training.snapshot import Snapshot

_RELAY_SECONDS = 0.25
_NO_SHARED_FOLDER = "Put the run directory on a file system that all hosts share."


@dataclass(frozen=True)
class PublishedJob:
    """A request to train, as rank 0 publishes it. Ticket and mask lie in the shared folder."""

    number: int
    ticket: str
    ticket_steps: int
    mask: str
    training: Training
    seeds: tuple[tuple[int, Seed], ...]
    first: int
    last: int | None
    address: Any
    """Address of the progress (see Progress.address)."""
    choice: Any
    """The backend that rank 0 uses, as JSON. All ranks use the same, because backends round differently."""
    groups: int
    """Groups of ranks that train one particle each by data parallelism; 0: each rank trains whole particles."""
    sharded: bool
    """Whether the parameters are sharded over the ranks of a group too."""
    trunk: bool
    """Whether the particles start at the end of a trunk, which rank 0 has stored through the progress."""


class Distributed:
    """The backend of rank 0; the other ranks run `follow`. See Backend.

    After an error the job is over: `train` is not called again.

    Args:
        inner: backend for the particles that this rank trains by itself.
        coordinator: the ranks of the job.
        folder: folder that all ranks share, for tickets and masks.
        particles: particles per cycle. If there are more ranks, several ranks train each particle (data parallelism),
            which equals training by one process up to rounding. 0: never.
        data_parallel: makes the backend for the shard of a process, for data parallelism.
        sharded: shard the parameters too (FSDP2).
        choice: which backend `inner` uses, as JSON, for the other ranks to use the same.
    """

    def __init__(
        self,
        inner: Backend,
        coordinator: Coordinator,
        folder: Path,
        *,
        particles: int = 0,
        data_parallel: Callable[[Shard], Backend] | None = None,
        sharded: bool = False,
        choice: Callable[[], Any] = lambda: None,
    ) -> None:
        self.inner, self.coordinator, self.folder, self.choice = inner, coordinator, folder, choice
        self.data_parallel, self.sharded = data_parallel, sharded
        self.whole_particles = data_parallel is None or not particles or coordinator.size <= particles
        self.jobs = 0
        self.last_inputs = "", ""

    def train(self, request: TrainRequest) -> list[Particle]:
        """See Backend.train. `request.progress` must have an address, unless it is the default.

        Raises:
            RankFailed: A rank died or stopped responding; the message names it.
        """
        seeds, size, ticket, mask = request.seeds, self.coordinator.size, request.ticket, request.mask
        if not seeds:
            return []
        progress = FolderProgress(self.folder) if type(request.progress) is Progress else request.progress
        if self.whole_particles and isinstance(self.inner, Autotune):
            self.inner.choose(replace(request, seeds=seeds[0::size]))
        self.jobs += 1
        job = PublishedJob(
            self.jobs, ticket.id, ticket.steps, mask.digest, request.training, tuple(seeds), request.first,
            request.last, progress.address, self.choice(), 0 if self.whole_particles else min(len(seeds), size),
            self.sharded, request.trunk is not None,
        )  # fmt: skip
        with self._stored_inputs(ticket, mask):
            self.coordinator.publish(f"job/{job.number}", msgspec.to_builtins(job))
            leading = _LeadingProgress(progress, self.coordinator, job)
            try:
                own = _train_share(self.coordinator, job, self.inner, self.data_parallel, request, leading)
            except Interrupted as error:
                raise self.coordinator.failure or error from None
            self.coordinator.poll(leading.others_done)
        trained = {particle.index: particle for particle in own}
        for index, _ in seeds:
            if index not in trained and index not in leading.diverged:
                trained[index] = self._stored(progress, index, ticket)
        return [trained[index] for index, _ in seeds if index in trained]

    @contextmanager
    def _stored_inputs(self, ticket: Ticket, mask: Mask) -> Generator[None]:
        """Inside the block, ticket and mask are files in the shared folder, unless they are those of the last job."""
        ticket_path, mask_path = _input_paths(self.folder, ticket.id, mask.digest)
        try:
            if ticket.id != self.last_inputs[0]:
                ticket.save(ticket_path)
            if mask.digest != self.last_inputs[1]:
                mask.save(mask_path)
            self.last_inputs = ticket.id, mask.digest
            yield
        finally:
            ticket_path.unlink(missing_ok=True)
            mask_path.unlink(missing_ok=True)

    def _stored(self, progress: Progress, index: int, ticket: Ticket) -> Particle:
        """A particle that another rank has stored, on the device of the ticket."""
        # A network file system may show a file of another host some time later.
        until = time.monotonic() + self.coordinator.timeout
        try:
            particle = self.coordinator.poll(lambda: progress.load_particle(index), until)
        except TimeoutError as error:
            raise SwampError(
                f"particle {index}, which another rank stored, is not found. {_NO_SHARED_FOLDER}"
            ) from error
        return replace(particle, weights={n: w.to(ticket.weights[n].device) for n, w in particle.weights.items()})


def follow(
    coordinator: Coordinator,
    folder: Path,
    build: Callable[[Any], Backend],
    open_progress: Callable[[Any], Progress],
    data_parallel: Callable[[Shard], Backend] | None = None,
) -> None:
    """Train this rank's share of each job that rank 0 publishes, until rank 0 ends without an error.

    Args:
        coordinator: the ranks of the job.
        folder: folder that all ranks share, for tickets and masks.
        build: makes the backend for whole particles from rank 0's choice (see Distributed).
        open_progress: makes the progress from the address of rank 0's.
        data_parallel: makes the backend for the shard of this process, for data parallelism.

    Raises:
        JobEnded: rank 0 ended with an error.
        RankFailed: rank 0 is gone.
    """
    inner, choice = None, None
    ticket, mask = Ticket({}, 0), Mask({})
    number = 0
    while True:
        number += 1
        try:
            job = msgspec.convert(coordinator.wait(f"job/{number}"), PublishedJob)
        except JobEnded as ended:
            if ended.exit_code:
                raise
            return
        coordinator.step = None
        coordinator.update(job=number, diverged=(), done=False)
        ticket, mask = _load_inputs(folder, job, ticket, mask)
        if not job.groups and (inner is None or job.choice != choice):
            inner, choice = build(job.choice), job.choice
        progress = _FollowingProgress(open_progress(job.address), coordinator, job)
        trunk = _load_trunk(coordinator, progress) if job.trunk else None
        request = TrainRequest(ticket, mask, job.training, job.seeds, job.first, job.last, progress, trunk)
        _train_share(coordinator, job, inner, data_parallel, request, progress)
        coordinator.update(done=True)


def _train_share(
    coordinator: Coordinator,
    job: PublishedJob,
    inner: Backend | None,
    data_parallel: Callable[[Shard], Backend] | None,
    request: TrainRequest,
    progress: "_RankProgress",
) -> list[Particle]:
    """Train this rank's share of the `request` that a job describes."""
    if not job.groups:
        assert inner is not None
        own = job.seeds[coordinator.rank :: coordinator.size]
        return inner.train(replace(request, seeds=own, progress=progress))
    mesh = coordinator.mesh(job.groups)
    place = mesh.get_coordinate()
    if place is None:
        return []  # groups have equal sizes, which leaves some ranks without work
    assert data_parallel is not None
    shard = DataParallel(mesh, coordinator.stop, sharded=job.sharded)
    group_progress = GroupProgress(progress, shard, coordinator.agreed)
    own = job.seeds[place[0] :: job.groups]
    try:
        particles = data_parallel(shard).train(replace(request, seeds=own, progress=group_progress))
    except Interrupted:
        if not coordinator.stop.is_set():
            coordinator.poll(lambda: None)  # another rank of the group stopped: raises its reason
        raise
    except RuntimeError as error:
        # gloo and NCCL raise it when another rank of the group is gone.
        raise coordinator.attribute_failure(error) from error
    if job.sharded:
        # FSDP2 leaves reference cycles: without a collection the memory would be freed at an arbitrary time.
        gc.collect()
    return particles if shard.first else []


class _RankProgress(ForwardingProgress):
    """Stops this rank's training once the job stops."""

    def __init__(self, inner: Progress, coordinator: Coordinator, job: PublishedJob) -> None:
        super().__init__(inner)
        self.coordinator, self.job = coordinator, job
        self.places = 0  # the share of this rank alone

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        # Read first: a stop during `on_step` is for the next step, after `inner` has saved.
        stopping = self.coordinator.stop.is_set()
        super().on_step(index, step, total, snapshot)
        # Under data parallelism all ranks of a group stop at the same step: see GroupProgress.
        if stopping and not self.job.groups:
            raise Interrupted("stopped.")


class _FollowingProgress(_RankProgress):
    """Publishes steps and divergences of a rank other than 0. Rank 0 decides what becomes of a diverged particle."""

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        self.coordinator.step = index, step, total
        super().on_step(index, step, total, snapshot)

    def on_diverged(self, index: int, error: Diverged) -> None:
        self.coordinator.update(diverged=(*self.coordinator.status.diverged, (index, str(error), error.steps)))


class _LeadingProgress(_RankProgress):
    """Rank 0's progress: relays steps and divergences of the other ranks."""

    def __init__(self, inner: Progress, coordinator: Coordinator, job: PublishedJob) -> None:
        super().__init__(inner, coordinator, job)
        self.diverged: set[int] = set()
        self.relayed_at = time.monotonic()

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        if time.monotonic() - self.relayed_at > _RELAY_SECONDS and self.coordinator.failure is None:
            try:
                self._relay()
            except SwampError as error:
                # Raised by `train`, after this rank's own training is saved.
                self.coordinator.fail(error)
        super().on_step(index, step, total, snapshot)

    def on_diverged(self, index: int, error: Diverged) -> None:
        self.diverged.add(index)
        super().on_diverged(index, error)

    def others_done(self) -> bool | None:
        """True once all other ranks have finished and stored their particles of the job."""
        self.coordinator.read()
        self._relay()
        statuses = self.coordinator.statuses
        done = [rank for rank, status in statuses.items() if status.job == self.job.number and status.done]
        return len(done) == self.coordinator.size - 1 or None

    def _relay(self) -> None:
        self.relayed_at = time.monotonic()
        for status in list(self.coordinator.statuses.values()):
            if status.job != self.job.number:
                continue
            for index, text, steps in status.diverged:
                if index not in self.diverged:
                    self.on_diverged(index, Diverged(text, steps))
            if status.step is not None and not status.done:
                self.on_remote_step(*status.step)


class FolderProgress(Progress):
    """Stores finished particles in a folder that all ranks share; keeps no unfinished training."""

    def __init__(self, folder: Path | str) -> None:
        self.address = str(folder)

    def on_finished(self, particle: Particle) -> None:
        """Store the particle."""
        particle.save(self._path(particle.index))

    def load_particle(self, index: int) -> Particle | None:
        """Load a stored particle."""
        path = self._path(index)
        return Particle.load(path) if path.exists() else None

    def _path(self, index: int) -> Path:
        return Path(self.address) / f"particle-{index}.safetensors"


def _load_trunk(coordinator: Coordinator, progress: Progress) -> Trunk:
    """The trunk that rank 0 has stored."""
    try:
        return coordinator.poll(progress.load_trunk, time.monotonic() + coordinator.timeout)
    except TimeoutError as error:
        raise SwampError(
            f"the trunk of the particles, which rank 0 stored, is not found. {_NO_SHARED_FOLDER}"
        ) from error


def _input_paths(folder: Path, ticket: str, mask: str) -> tuple[Path, Path]:
    """Files of ticket and mask. Named as unfinished files, so that the next session deletes what a killed one left."""
    return folder / f".job-ticket.{ticket[:8]}", folder / f".job-mask.{mask[:8]}"


def _load_inputs(folder: Path, job: PublishedJob, ticket: Ticket, mask: Mask) -> tuple[Ticket, Mask]:
    """Ticket and mask of a job; read where they are not the last job's."""
    ticket_path, mask_path = _input_paths(folder, job.ticket, job.mask)
    try:
        if ticket.id != job.ticket:
            ticket = Ticket.load(ticket_path)
        if mask.digest != job.mask:
            mask = Mask.load(mask_path)
    except CorruptFile as error:
        raise SwampError(f"{error} {_NO_SHARED_FOLDER}") from error
    if (ticket.id, mask.digest) != (job.ticket, job.mask):
        raise SwampError(
            f"this rank read ticket {ticket.id} and mask {mask.digest}, rank 0 wrote ticket {job.ticket} and mask "
            f"{job.mask}. {_NO_SHARED_FOLDER}"
        )
    return ticket if ticket.steps == job.ticket_steps else replace(ticket, steps=job.ticket_steps), mask
