"""Ranks: particles shared out over the processes of a torchrun job.

Rank 0 leads: it alone runs the cycle loop, and for each training it tells the others what to train. They serve until
it says that it is over. Whole particles travel back and rank 0 takes their mean in the order of their indices: a
reduction would add in an order that depends on the number of ranks, and so would the last bits of the result.
"""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import msgspec
import torch
from torch import Tensor

from swamp.errors import Diverged, Interrupted, SwampError
from swamp.particles.backend import Backend, Progress, Silent
from swamp.particles.particle import Particle
from swamp.particles.ticket import Ticket
from swamp.particles.wire import broadcast, packed, receive, send, unpacked
from swamp.particles.world import World
from swamp.sparsity import Mask
from swamp.training import Seed, Snapshot, Training

_RELAY = 0.25


@runtime_checkable
class Addressed(Protocol):
    """Progress that another process can open too, by its address, and that hears of steps taken elsewhere."""

    @property
    def address(self) -> Any:
        """Plain JSON from which the other process makes its own."""
        ...

    def elsewhere(self, index: int, step: int, total: int) -> None:
        """Particle `index`, trained by another process, has taken `step` of `total` steps."""
        ...


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


@dataclass(frozen=True)
class Trained:
    """A particle without its weights, which follow as so many bytes."""

    index: int
    averaged: int
    steps: int
    losses: tuple[float, ...]
    seconds: float
    size: int


class Ranks:
    """Trains each particle on one of the ranks of `world`; made on rank 0, while the others `serve`.

    inner: trains this rank's own share. choice: what the others build theirs from, as plain JSON.
    An error ends the job for all ranks: after it, `train` is not called again.
    """

    def __init__(self, inner: Backend, world: World, choice: Callable[[], Any] = lambda: None) -> None:
        self.inner, self.world, self.choice = inner, world, choice
        self.number, self.ticket, self.mask = 0, "", ""

    def train(
        self,
        ticket: Ticket,
        mask: Mask,
        training: Training,
        seeds: Sequence[tuple[int, Seed]],
        *,
        first: int = 0,
        last: int | None = None,
        progress: Progress | None = None,
    ) -> list[Particle]:
        """See Backend.train. Raises Lost naming a rank that died or froze."""
        if not seeds:
            return []
        told = _Leading(progress or Silent(), self)
        self._announce(ticket, mask, training, tuple(seeds), first, last, told.address)
        own = share(seeds, 0, self.world.size)
        particles = self.inner.train(ticket, mask, training, own, first=first, last=last, progress=told)
        others = range(1, self.world.size)
        answers = self.world.hear(f"done-{self.number}", others, told.watch)
        for rank in others:
            like = particles[0] if particles else None
            for particle in self._collected(rank, answers[rank], ticket, mask, like):
                told.finished(particle)
                particles.append(particle)
        found = {particle.index: particle for particle in particles}
        return [found[index] for index, _ in seeds]

    def failure(self, rank: int, answer: Any) -> Exception | None:
        """What a rank's answer says went wrong."""
        kind, text = answer["error"] or (None, "")
        member = self.world.members[rank]
        match kind:
            case None:
                return None
            case "Diverged":
                return Diverged(text)
            case "Interrupted":
                return Interrupted(f"{member} was stopped.")
            case "SwampError":
                return SwampError(f"{member}: {text}")
            case _:
                return RuntimeError(f"{member} failed:\n{text}")

    def _announce(
        self,
        ticket: Ticket,
        mask: Mask,
        training: Training,
        seeds: tuple[tuple[int, Seed], ...],
        first: int,
        last: int | None,
        address: Any,
    ) -> None:
        self.number += 1
        parts: list[Tensor] = [torch.empty(0)] * 2
        if ticket.id != self.ticket:
            parts[0] = packed(ticket.weights)
        if mask.digest != self.mask:
            # One byte a weight: a quarter of what the ticket takes, once a cycle.
            parts[1] = packed(mask)
        self.ticket, self.mask = ticket.id, mask.digest
        sizes = [part.numel() for part in parts]
        job = Job(
            self.number, ticket.id, ticket.steps, sizes[0], mask.digest, sizes[1], training, seeds, first, last,
            address, self.choice(),
        )  # fmt: skip
        self.world.post(f"job-{self.number}", msgspec.to_builtins(job))
        # Everyone is known to come before the transfer, which cannot be interrupted, begins.
        self.world.hear(f"coming-{self.number}", range(1, self.world.size))
        for part in parts:
            if part.numel():
                self._transfer(lambda part=part: broadcast(part, part.numel()))
        for rank, held in self.world.hear(f"holds-{self.number}", range(1, self.world.size)).items():
            if held != [ticket.id, mask.digest]:
                raise SwampError(
                    f"{self.world.members[rank]} holds ticket {held[0]} and mask {held[1]}, rank 0 sent ticket "
                    f"{ticket.id} and mask {mask.digest}: its memory or network is at fault. Leave that host out."
                )

    def _collected(self, rank: int, answer: Any, ticket: Ticket, mask: Mask, like: Particle | None) -> list[Particle]:
        trained = msgspec.convert(answer["particles"], list[Trained])
        if not trained:
            return []
        self.world.post(f"take-{self.number}-{rank}", True)
        particles: list[Particle] = []
        for one in trained:
            weights = unpacked(self._transfer(lambda one=one: receive(rank, one.size)))
            mask.require_zeros(weights)
            place = ticket.weights if like is None else like.weights
            weights = {name: tensor.to(place[name].device) for name, tensor in weights.items()}
            particles.append(
                Particle(weights, one.index, ticket.id, mask.digest, one.averaged, one.steps, one.losses, one.seconds)
            )
        return particles

    def _transfer(self, move: Callable[[], Tensor]) -> Tensor:
        try:
            return move()
        except RuntimeError as error:
            raise self.world.blame(error) from error


def share(seeds: Sequence[tuple[int, Seed]], rank: int, ranks: int) -> list[tuple[int, Seed]]:
    """The seeds that a rank trains."""
    return list(seeds[rank::ranks])


class _Leading:
    """Rank 0's progress: relays the others' steps, and stops its own training where one of them failed."""

    def __init__(self, told: Progress, ranks: Ranks) -> None:
        self.told, self.ranks, self.world = told, ranks, ranks.world
        self.watched = time.monotonic()

    @property
    def address(self) -> Any:
        return self.told.address if isinstance(self.told, Addressed) else None

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        trouble: Exception | None = None
        try:
            self.watch()
        except (SwampError, RuntimeError) as error:
            trouble = error
            self.world.asked.set()  # so that the progress saves this training before it ends
        try:
            self.told.stepped(index, step, total, snapshot)
        except Interrupted:
            if trouble is None:
                raise
        if trouble is not None:
            raise trouble

    def unfinished(self, index: int) -> Snapshot | None:
        return self.told.unfinished(index)

    def finished(self, particle: Particle) -> None:
        self.told.finished(particle)

    def watch(self) -> None:
        """Now and then: raise what went wrong elsewhere, relay how far the others are."""
        if time.monotonic() - self.watched < _RELAY:
            return
        self.watched = time.monotonic()
        for rank in range(1, self.world.size):
            for answer in self.world.find(f"done-{self.ranks.number}", rank):
                failed = self.ranks.failure(rank, answer)
                if failed is not None:
                    raise failed
        self.world.check()
        if isinstance(self.told, Addressed):
            for beat, _ in self.world.pulse.read().values():
                if beat.at is not None:
                    self.told.elsewhere(*beat.at)


class _Serving:
    """Progress of a rank that serves: its steps go into its signs of life."""

    def __init__(self, told: Progress, world: World) -> None:
        self.told, self.world = told, world

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        self.world.pulse.at = index, step, total
        self.told.stepped(index, step, total, snapshot)
        if self.world.asked.is_set():
            raise Interrupted("stopped.")

    def unfinished(self, index: int) -> Snapshot | None:
        return self.told.unfinished(index)

    def finished(self, particle: Particle) -> None:
        self.told.finished(particle)


def serve(world: World, build: Callable[[Any], Backend], progress: Callable[[Any], Progress]) -> None:
    """Train what rank 0 asks for, until it ends the job well. Raises Over where it ends otherwise, Lost where it died.

    build: rank 0's choice (see Ranks) to the backend for this rank's share, called once.
    progress: address of rank 0's progress to one of this process; without an address, nothing is kept.
    """
    inner: Backend | None = None
    ticket, mask, number = Ticket({}, 0), Mask({}), 0
    while True:
        number += 1
        job = msgspec.convert(world.hear(f"job-{number}", [0])[0], Job)
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
        inner = inner or build(job.choice)
        told = Silent() if job.address is None else progress(job.address)
        particles = _answered(world, job, inner, ticket, mask, _Serving(told, world))
        if particles:
            world.hear(f"take-{number}-{world.rank}", [0])
            for data in particles:
                send(data)


def _answered(world: World, job: Job, inner: Backend, ticket: Ticket, mask: Mask, progress: Progress) -> list[Tensor]:
    """Train this rank's share and tell rank 0 how it went; the weights, to be sent when it takes them."""
    done = f"done-{job.number}"
    try:
        own = share(job.seeds, world.rank, world.size)
        particles = inner.train(ticket, mask, job.training, own, first=job.first, last=job.last, progress=progress)
    except Exception as error:
        known = next((kind for kind in (Diverged, Interrupted, SwampError) if isinstance(error, kind)), None)
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
