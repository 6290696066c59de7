"""Ranks: particles shared out over the processes of a torchrun job.

Rank 0 leads: it alone runs the cycle loop, and for each training it tells the others what to train. They serve until
it says that it is over. Whole particles travel back and rank 0 takes their mean in the order of their indices: a
reduction would add in an order that depends on the number of ranks, and so would the last bits of the result.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from swamp.backends.autotune import Autotune
from swamp.backends.base import Backend, ForwardingProgress, Progress
from swamp.backends.particle import Particle
from swamp.backends.serving import Job, Shared, Trained, own_part
from swamp.backends.ticket import Ticket
from swamp.backends.wire import broadcast, packed, receive, unpacked
from swamp.backends.world import World
from swamp.errors import Diverged, Interrupted, RankFailed, SwampError
from swamp.masks import Mask
from swamp.training import Seed, Snapshot, Training

_RELAY = 0.25


class Ranks:
    """Trains each particle on one of the ranks of `world`; made on rank 0, while the others `serve`.

    inner: trains this rank's own particles. choice: what the others build theirs from, as plain JSON.
    particles: N; where there are more ranks than that, several train each particle together, by the backend that
    `shared` makes. Other numbers than with fewer ranks, up to rounding, since each step's sums are taken in parts.
    sharded: spread each such particle's parameters, and all that training keeps of them, over its ranks.
    An error ends the job for all ranks: after it, `train` is not called again.
    """

    def __init__(
        self,
        inner: Backend,
        world: World,
        choice: Callable[[], Any] = lambda: None,
        *,
        particles: int = 0,
        shared: Shared | None = None,
        sharded: bool = False,
    ) -> None:
        self.inner, self.world, self.choice, self.shared = inner, world, choice, shared
        self.sharded = sharded
        self.apart = shared is None or world.size <= particles
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
        """See Backend.train. Raises RankFailed naming a rank that died or froze."""
        if not seeds:
            return []
        told = _Leading(progress or Progress(), self)
        if self.apart and isinstance(self.inner, Autotune):
            self.inner.choose(ticket, mask, training, seeds[0 :: self.world.size], first, last)
        job = self._announce(ticket, mask, training, tuple(seeds), first, last, told.address)
        try:
            particles = own_part(self.world, job, self.inner, self.shared, ticket, mask, told)
        except Interrupted as error:
            raise told.trouble or error from None
        others = range(1, self.world.size)
        answers = self.world.hear(f"done-{self.number}", others, told.watch)
        for rank in others:
            if (failed := self.failure(rank, answers[rank])) is not None:
                raise failed
        told.hear_of_broken()
        for rank in others:
            like = particles[0] if particles else None
            for particle in self._collected(rank, answers[rank], ticket, mask, like):
                told.on_finished(particle)
                particles.append(particle)
        found = {particle.index: particle for particle in particles}
        return [found[index] for index, _ in seeds if index in found]

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
            case "RankFailed":
                return RankFailed(text)
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
    ) -> Job:
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
            address, self.choice(), 0 if self.apart else min(len(seeds), self.world.size), self.sharded,
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
        return job

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


class _Leading(ForwardingProgress):
    """Rank 0's progress: relays the others' steps, and stops its own training where one of them failed."""

    def __init__(self, told: Progress, ranks: Ranks) -> None:
        super().__init__(told)
        self.ranks, self.world = ranks, ranks.world
        self.watched = time.monotonic()
        self.broken: set[int] = set()
        self.trouble: Exception | None = None
        """What went wrong elsewhere, once it did."""

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        if self.trouble is None:
            try:
                self.watch()
            except (SwampError, RuntimeError) as error:
                self.trouble = error
                # The progress saves this training before it ends; others on the same particle stop at the same step.
                self.world.asked.set()
        self.inner.on_step(index, step, total, snapshot)

    def hear_of_broken(self) -> None:
        """Tell of particles that broke on other ranks, each once."""
        for rank in range(1, self.world.size):
            for broken in self.world.find(f"broke-{self.ranks.number}", rank):
                for index, (text, steps) in broken:
                    if index not in self.broken:
                        self.broken.add(index)
                        self.inner.on_diverged(index, Diverged(text, steps))

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
        self.hear_of_broken()
        self.world.check()
        for beat, _ in self.world.beats().values():
            if beat.at is not None:
                self.inner.on_remote_step(*beat.at)
