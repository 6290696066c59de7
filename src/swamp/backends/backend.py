"""Backend: whatever can train copies of a ticket. The cycle loop needs nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from swamp.backends.particle import Particle
from swamp.backends.ticket import Ticket
from swamp.errors import Diverged
from swamp.masks import Mask
from swamp.training import Seed, Snapshot, Training


class Progress(Protocol):
    """Where a backend reports, and where a training in progress is kept across interruptions."""

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Particle `index` has taken `step` of `total` steps. May save `snapshot()` or raise Interrupted."""
        ...

    def unfinished(self, index: int) -> Snapshot | None:
        """The snapshot that an earlier, interrupted training of particle `index` left."""
        ...

    def ready(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Particle `index` took its last step together with others. Save it: they are finished one by one, and a
        process that dies meanwhile would train those that are left in other company, which rounds differently."""
        ...

    def finished(self, particle: Particle) -> None:
        """A particle is trained; called as soon as it is, so that it can be stored."""
        ...

    def broke(self, index: int, error: Diverged) -> None:
        """Particle `index` has a loss or weights that are not finite. Raise `error`, or let the others go on alone."""
        ...


class Silent:
    """Progress that reports nothing and keeps nothing."""

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Nothing to do."""

    def unfinished(self, index: int) -> Snapshot | None:
        """Nothing was kept."""
        return None

    def ready(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Nothing to do."""

    def finished(self, particle: Particle) -> None:
        """Nothing to do."""

    def broke(self, index: int, error: Diverged) -> None:
        """Nobody said that the others should go on."""
        raise error


class Backend(Protocol):
    """Trains particles: one after the other, at once, on many machines, or with a user's own trainer.

    Every backend gives the same particles for the same arguments, up to rounding where its arithmetic differs.
    """

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
        """One particle for each (index, seed), in their order, trained from step `first` to `last` (default: the end).

        Each starts at `mask * ticket.weights` with fresh optimizer state; its weights are zero off the mask. One whose
        loss or weights are not finite is told to `progress`, which raises Diverged or has the others go on: then it is
        left out of what is returned, and the others are what they would be without it.
        """
        ...


@dataclass(frozen=True, eq=False)
class Group:
    """Particles to train that have their ticket, their mask and those they report to in common."""

    ticket: Ticket
    mask: Mask
    seeds: Sequence[tuple[int, Seed]]
    progress: Progress = field(default_factory=Silent)
    of: int = 0
    """How many there are with those that broke, or that an earlier session finished, from index 0 on (0: only `seeds`).
    The share of the machine that all of them had, and its place in a stack, each must have again for the same bits."""

    @property
    def size(self) -> int:
        """Places for all."""
        return self.of or len(self.seeds)


@runtime_checkable
class AtOnce(Protocol):
    """A backend that trains particles of several groups at once."""

    def train_groups(
        self, groups: Sequence[Group], training: Training, *, first: int = 0, last: int | None = None
    ) -> list[list[Particle]]:
        """The particles of each group, as `Backend.train` gives them."""
        ...


def train_groups(
    backend: Backend, groups: Sequence[Group], training: Training, *, first: int = 0, last: int | None = None
) -> list[list[Particle]]:
    """See AtOnce; one group after the other where the backend can do no more."""
    if isinstance(backend, AtOnce):
        return backend.train_groups(groups, training, first=first, last=last)
    return [
        backend.train(g.ticket, g.mask, training, g.seeds, first=first, last=last, progress=g.progress)
        if g.seeds
        else []
        for g in groups
    ]
