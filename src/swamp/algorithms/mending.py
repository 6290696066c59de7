"""Particles that broke, whose loss or weights are not finite any more: trained again, left out, or the end of it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from swamp.algorithms.cycle import Break
from swamp.algorithms.plan import Plan
from swamp.algorithms.store import Store
from swamp.backends import Addressed, Backend, Group, Particle, Progress, Ticket, train_groups
from swamp.errors import Diverged
from swamp.masks import Mask
from swamp.training import Seed, Training

RESTARTS = 3
"""Times that a particle is trained again, with half the learning rate each time."""


class Mending:
    """What trains the particles of a run, and what its plan says of those that break; `store` keeps what broke.

    A particle that is trained again starts at its ticket, with noise of its own that its seed names: so a run that was
    killed meanwhile goes on to the same bits.
    """

    def __init__(self, plan: Plan, backend: Backend, store: Store) -> None:
        self.policy, self.backend, self.store = plan.on_divergence, backend, store
        self.breaks = list(store.breaks())

    def of(self, cycle: int | None) -> list[Break]:
        """What broke in a cycle (None: the ticket), in the order of particles and attempts."""
        return sorted((one for one in self.breaks if one.cycle == cycle), key=lambda one: (one.particle, -one.lr))

    def times(self, cycle: int) -> int:
        """How often a cycle broke whose particles all start over where one breaks."""
        return len(self.of(cycle)) if self.policy == "restart" else 0

    def whole(self, cycle: int | None, count: int) -> list[int]:
        """The particles of a cycle that are not left out."""
        return [i for i in range(count) if not (self.policy == "drop" and self.times_of(cycle, i))]

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

    def check(self, cycle: int | None, count: int) -> None:
        """Raise Diverged where one broke, in an earlier session perhaps, after which nothing is to go on."""
        for broke in self.of(cycle):
            self._refuse(cycle, broke.particle, count, Diverged(f"particle {broke.particle}: {broke.why}"))

    def times_of(self, cycle: int | None, index: int) -> int:
        """How often a particle broke."""
        return sum(one.particle == index for one in self.of(cycle))

    def _refuse(self, cycle: int | None, index: int, count: int, error: Diverged) -> None:
        if self.policy == "restart" and self.times_of(cycle, index) > RESTARTS:
            raise Diverged(
                f"{error} It broke {RESTARTS + 1} times, with half the learning rate each time.", error.steps
            )
        if self.policy == "drop" and len({one.particle for one in self.of(cycle)}) >= count:
            raise Diverged(f"{error} No particle is left to go on with.", error.steps)


@dataclass(frozen=True, eq=False)
class Wanted:
    """Particles of a cycle (None: the ticket) that a run wants trained from step `first` to `last`."""

    mending: Mending
    cycle: int | None
    count: int
    """Particles of the cycle, those included that are finished."""
    start: Ticket
    mask: Mask
    training: Training
    seeds: Sequence[tuple[int, Seed]]
    first: int = 0
    last: int | None = None

    @property
    def span(self) -> tuple[Training, int, int | None]:
        """How, from where and up to where."""
        return self.training, self.first, self.last

    def left(self, found: Sequence[Particle]) -> list[tuple[int, Seed]]:
        """Those that are neither found nor left out."""
        self.mending.check(self.cycle, self.count)
        left = {*self.mending.whole(self.cycle, self.count)} - {particle.index for particle in found}
        return [(i, seed) for i, seed in self.seeds if i in left]

    def times(self, index: int) -> int:
        """How often a particle broke."""
        return self.mending.times_of(self.cycle, index)

    def at(self, times: int, left: Sequence[tuple[int, Seed]]) -> Group:
        """Those of `left` that broke so many times."""
        seeds = [(i, again(seed, times)) for i, seed in left if self.times(i) == times]
        progress = self.mending.store.progress(self.cycle, self.count)
        lr = gentler(self.training, times).lr
        told = _Told(self.mending, progress, self.cycle, self.count, lr, self.first)
        return Group(self.start, self.mask, seeds, told, of=self.count)


def train_wanted(wanted: Sequence[Wanted]) -> list[list[Particle]]:
    """What each of some runs wants, until every particle is whole or left out.

    Trained at once are those whose trainings are alike, by the backend of all these runs. Raises Diverged where
    the plan says so, where none is left, and where a particle broke at every learning rate.
    """
    found: list[list[Particle]] = [[] for _ in wanted]
    while left := {n: some for n, one in enumerate(wanted) if (some := one.left(found[n]))}:
        lead = wanted[min(left)]
        # Those that lack nothing too: what is trained must not hang on what was finished before.
        alike = [n for n, one in enumerate(wanted) if one.span == lead.span]
        # Those that broke as often have the same learning rate.
        times = min(wanted[n].times(i) for n in alike for i, _ in left.get(n, []))
        groups = [wanted[n].at(times, left.get(n, [])) for n in alike]
        training = gentler(lead.training, times)
        trained = train_groups(lead.mending.backend, groups, training, first=lead.first, last=lead.last)
        for n, particles in zip(alike, trained, strict=True):
            found[n] += particles
    return found


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
