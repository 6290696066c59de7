"""Particles that broke, whose loss or weights are not finite any more: trained again, left out, or the end of it."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from swamp.errors import Diverged
from swamp.methods.cycle import Break
from swamp.methods.plan import Plan
from swamp.methods.store import Store
from swamp.particles import Addressed, Backend, Particle, Progress, Ticket
from swamp.sparsity import Mask
from swamp.training import Seed, Training

RESTARTS = 3
"""Times that a particle is trained again, with half the learning rate each time."""


class Mending:
    """Trains the particles of a run and does with broken ones what the plan says; `store` keeps what broke.

    A particle that is trained again starts at its ticket, with noise of its own that its seed names: so a run that was
    killed meanwhile goes on to the same bits.
    """

    def __init__(self, plan: Plan, backend: Backend, store: Store) -> None:
        self.policy, self.backend, self.store = plan.broken, backend, store
        self.breaks = list(store.breaks())

    def of(self, cycle: int | None) -> list[Break]:
        """What broke in a cycle (None: the ticket), in the order of particles and attempts."""
        return sorted((one for one in self.breaks if one.cycle == cycle), key=lambda one: (one.particle, -one.lr))

    def train(
        self,
        cycle: int | None,
        count: int,
        start: Ticket,
        mask: Mask,
        training: Training,
        seeds: Sequence[tuple[int, Seed]],
        *,
        first: int = 0,
        last: int | None = None,
    ) -> list[Particle]:
        """Backend.train of a cycle that has `count` particles, until each is whole or left out.

        Raises Diverged where the plan says so, where none is left, and where a particle broke at every learning rate.
        """
        found: list[Particle] = []
        left = list(seeds)
        while left := self._left(cycle, count, left, found):
            # Those that broke as often have the same learning rate, and are trained at once.
            times = min(self._times(cycle, index) for index, _ in left)
            group = [(i, again(seed, times)) for i, seed in left if self._times(cycle, i) == times]
            gentle = gentler(training, times)
            told = _Told(self, self.store.progress(cycle, count), cycle, count, gentle.lr, first)
            found += self.backend.train(start, mask, gentle, group, first=first, last=last, progress=told)
        return found

    def times(self, cycle: int) -> int:
        """How often a cycle broke whose particles all start over where one breaks."""
        return len(self.of(cycle)) if self.policy == "restart" else 0

    def whole(self, cycle: int, count: int) -> list[int]:
        """The particles of a cycle that are not left out."""
        return [i for i in range(count) if not (self.policy == "drop" and self._times(cycle, i))]

    def broke(self, cycle: int | None, index: int, count: int, lr: float, first: int, error: Diverged) -> None:
        """Keep that a training with this learning rate, which began at step `first`, broke.

        Raises Diverged where nothing is to go on after it.
        """
        if self.policy == "stop":
            raise error
        again = lr / 2 if self.policy == "restart" else None
        why = str(error).removeprefix(f"particle {index}: ")
        broke = Break(cycle, index, lr, error.steps - first, why, again)
        self.breaks.append(broke)
        self.store.keep_break(broke)
        self._refuse(cycle, index, count, error)
        warnings.warn(broke.sentence, stacklevel=2)

    def _left(
        self, cycle: int | None, count: int, seeds: Sequence[tuple[int, Seed]], found: Sequence[Particle]
    ) -> list[tuple[int, Seed]]:
        done = {particle.index for particle in found}
        for broke in self.of(cycle):
            # Kept by an earlier session, which ended with it.
            self._refuse(cycle, broke.particle, count, Diverged(f"particle {broke.particle}: {broke.why}"))
        out = [i for i, _ in seeds if self.policy == "drop" and self._times(cycle, i)]
        return [(i, seed) for i, seed in seeds if i not in done and i not in out]

    def _refuse(self, cycle: int | None, index: int, count: int, error: Diverged) -> None:
        if self.policy == "restart" and self._times(cycle, index) > RESTARTS:
            raise Diverged(
                f"{error} It broke {RESTARTS + 1} times, with half the learning rate each time.", error.steps
            )
        if self.policy == "drop" and len({one.particle for one in self.of(cycle)}) >= count:
            raise Diverged(f"{error} No particle is left to go on with.", error.steps)

    def _times(self, cycle: int | None, index: int) -> int:
        return sum(one.particle == index for one in self.of(cycle))


def again(seed: Seed, times: int) -> Seed:
    """The noise of a training that broke so many times."""
    return seed.at("restart", times) if times else seed


def gentler(training: Training, times: int) -> Training:
    """The training of what broke so many times."""
    return replace(training, lr=training.lr / 2**times)


class _Told:
    """Progress of particles of which some may break."""

    def __init__(
        self, mending: Mending, progress: Progress, cycle: int | None, count: int, lr: float, first: int
    ) -> None:
        self.mending, self.progress = mending, progress
        self.place = cycle, count, lr, first
        # Handed through, not wrapped: called at every step.
        self.stepped, self.unfinished = progress.stepped, progress.unfinished
        self.ready, self.finished = progress.ready, progress.finished

    def broke(self, index: int, error: Diverged) -> None:
        cycle, count, lr, first = self.place
        self.mending.broke(cycle, index, count, lr, first, error)

    @property
    def address(self) -> Any:
        return self.progress.address if isinstance(self.progress, Addressed) else None

    def elsewhere(self, index: int, step: int, total: int) -> None:
        if isinstance(self.progress, Addressed):
            self.progress.elsewhere(index, step, total)
