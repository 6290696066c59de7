"""The ranks that serve: they train what rank 0 asks for until it ends the job. See ranks.py."""

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Any

import msgspec
from torch import Tensor

from swamp.backends.base import Backend, ForwardingProgress, Progress
from swamp.backends.data_parallel import DataParallel, GroupProgress
from swamp.backends.particle import Particle
from swamp.backends.ticket import Ticket
from swamp.backends.wire import broadcast, packed, send, unpacked
from swamp.backends.world import JobEnded, World
from swamp.errors import Diverged, Interrupted, RankFailed, SwampError, as_swamp_error
from swamp.masks import Mask
from swamp.training import Seed, Shard, Snapshot, Training

Shared = Callable[[Shard], Backend]
"""Makes the backend that trains this process's share of each particle."""


@dataclass(frozen=True)
class Job:
    """What rank 0 asks the others to train. Tensors follow through the process group, where they are new."""

    number: int
    ticket: str
    ticket_steps: int
    ticket_bytes: int
    """0 where the ticket is the last job's."""
    mask: str
    mask_bytes: int
    training: Training
    seeds: tuple[tuple[int, Seed], ...]
    first: int
    last: int | None
    address: Any
    choice: Any
    """How rank 0 trains particles at once, as ways round differently."""
    groups: int
    """Groups of ranks that train a particle each, its batches shared out among them; 0: a rank alone trains whole
    particles."""
    sharded: bool
    """Whether the parameters are spread over the ranks of a group too."""


@dataclass(frozen=True)
class Trained:
    """A particle without its weights, which follow as so many bytes."""

    index: int
    averaged: int
    steps: int
    losses: tuple[float, ...]
    seconds: float
    size: int


def own_part(
    world: World, job: Job, inner: Backend | None, shared: Shared | None, ticket: Ticket, mask: Mask, told: Progress
) -> list[Particle]:
    """Train what falls to this rank; the particles that it has to report."""
    if not job.groups:
        assert inner is not None
        own = job.seeds[world.rank :: world.size]
        told = Alone(told, world.asked, world.agreed.set)
        return inner.train(ticket, mask, job.training, own, first=job.first, last=job.last, progress=told)
    mesh = world.mesh(job.groups)
    place = mesh.get_coordinate()
    if place is None:
        return []  # one of the ranks that are left when all groups have as many
    assert shared is not None
    one = DataParallel(mesh, world.asked, sharded=job.sharded)
    told = GroupProgress(told, one, world.agreed)
    own = job.seeds[place[0] :: job.groups]
    try:
        particles = shared(one).train(ticket, mask, job.training, own, first=job.first, last=job.last, progress=told)
    except RuntimeError as error:
        # What gloo and NCCL raise when the other side of a sum is gone.
        raise world.blame(error) from error
    if job.sharded:
        # What FSDP2 wrapped refers to itself: its parts would stay until the collector happens to come by.
        gc.collect()
    return particles if one.first else []


class Alone(ForwardingProgress):
    """Progress of particles that this process trains by itself. asked: set to save and stop, by way of `stop`."""

    def __init__(self, told: Progress, asked: Event, stop: Callable[[], None]) -> None:
        super().__init__(told)
        self.told, self.asked, self.stop = told, asked, stop

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Report; raise Interrupted where this process was asked to stop."""
        stopping = self.asked.is_set()
        if stopping:
            self.stop()
        self.told.on_step(index, step, total, snapshot)
        if stopping:
            raise Interrupted("stopped.")

    def load_snapshot(self, index: int) -> Snapshot | None:
        """What it goes on from."""
        return self.told.load_snapshot(index)

    def on_last_step(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on."""
        self.told.on_last_step(index, snapshot)

    def on_finished(self, particle: Particle) -> None:
        """Report it."""
        self.told.on_finished(particle)

    def on_diverged(self, index: int, error: Diverged) -> None:
        """Pass it on."""
        self.told.on_diverged(index, error)


class _Serving(ForwardingProgress):
    """Progress of a rank that serves: its steps go into its signs of life."""

    def __init__(self, told: Progress, world: World, number: int) -> None:
        super().__init__(told)
        self.told, self.world, self.number = told, world, number
        self.broken: dict[int, tuple[str, int]] = {}

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        self.world.pulse.at = index, step, total
        self.told.on_step(index, step, total, snapshot)

    def load_snapshot(self, index: int) -> Snapshot | None:
        return self.told.load_snapshot(index)

    def on_last_step(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        self.told.on_last_step(index, snapshot)

    def on_finished(self, particle: Particle) -> None:
        self.told.on_finished(particle)

    def on_diverged(self, index: int, error: Diverged) -> None:
        # Rank 0 says what becomes of it; where nothing is to go on without it, it ends the job.
        self.broken[index] = str(error), error.steps
        self.world.post(f"broke-{self.number}", list(self.broken.items()))


def serve(
    world: World,
    build: Callable[[Any], Backend],
    progress: Callable[[Any], Progress],
    shared: Shared | None = None,
) -> None:
    """Train what rank 0 asks for, until it ends the job well.

    Raises JobEnded where it ends otherwise, RankFailed where it died.

    build: rank 0's choice (see Ranks) to the backend for this rank's particles, called again where it changes.
    shared: makes the backend where several ranks train a particle together.
    progress: address of rank 0's progress to one of this process; without an address, nothing is kept.
    """
    inner: Backend | None = None
    choice: Any = None
    ticket, mask, number = Ticket({}, 0), Mask({}), 0
    while True:
        number += 1
        try:
            job = msgspec.convert(world.hear(f"job-{number}", [0])[0], Job)
        except JobEnded as over:
            if over.exit_code:
                raise
            return
        world.post(f"coming-{number}", True)
        try:
            if job.ticket_bytes:
                ticket = Ticket(unpacked(broadcast(None, job.ticket_bytes)), job.ticket_steps)
            if job.mask_bytes:
                mask = Mask(unpacked(broadcast(None, job.mask_bytes)))
        except RuntimeError as error:
            raise world.blame(error) from error
        ticket = replace(ticket, steps=job.ticket_steps)
        world.post(f"holds-{number}", [ticket.id, mask.digest])
        if not job.groups and (inner is None or job.choice != choice):
            inner, choice = build(job.choice), job.choice
        told = Progress() if job.address is None else progress(job.address)
        train = partial(own_part, world, job, inner, shared, ticket, mask, _Serving(told, world, number))
        particles = _answered(world, job, train)
        if particles:
            world.hear(f"take-{number}-{world.rank}", [0])
            _sent(world, particles)


def _sent(world: World, particles: list[Tensor]) -> None:
    try:
        for data in particles:
            send(data)
    except RuntimeError as error:
        raise world.blame(error) from error


def _answered(world: World, job: Job, train: Callable[[], list[Particle]]) -> list[Tensor]:
    """Train and tell rank 0 how it went; the weights, to be sent when it takes them."""
    done = f"done-{job.number}"
    try:
        particles = train()
    except Exception as fault:
        error = as_swamp_error(fault) or fault
        known = next(
            (kind for kind in (Diverged, Interrupted, RankFailed, SwampError) if isinstance(error, kind)), None
        )
        text = str(error) if known else "".join(traceback.format_exception(error))
        world.post(done, {"error": [known.__name__ if known else "fault", text], "particles": []})
        return []
    data = [packed(particle.weights) for particle in particles]
    heads = [
        Trained(p.index, p.averaged, p.steps, p.losses, p.seconds, size.numel())
        for p, size in zip(particles, data, strict=True)
    ]
    world.post(done, {"error": None, "particles": msgspec.to_builtins(heads)})
    return data
