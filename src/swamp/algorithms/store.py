"""Store: where the loop finds what an earlier, interrupted run already finished."""

from dataclasses import dataclass
from typing import Protocol

from swamp.algorithms.cycle import Cycle, Divergence
from swamp.backends import Choice, Particle, Progress, Ticket
from swamp.masks import Mask
from swamp.training import Snapshot, State


@dataclass(frozen=True, eq=False)
class Phase:
    """Particles in training whose masks change, stopped right after a change."""

    step: int
    masks: tuple[Mask, ...]
    """One that all share, or one each."""
    snapshots: tuple[Snapshot, ...]
    """One each (one for all while they are still one); none before the first step."""
    mean: State
    """The uncast mean of the samples of a cyclic tail, and how many it has."""
    averaged: int
    flops: float
    seconds: float


class Store(Protocol):
    """Each step of the loop is skipped where its output is stored: that is all of resume."""

    def ticket(self) -> Ticket | None:
        """The ticket, if it was kept."""
        ...

    def keep_ticket(self, ticket: Ticket) -> None:
        """Keep the ticket."""
        ...

    def choice(self) -> Choice | None:
        """How particles are trained, if that was chosen before."""
        ...

    def keep_choice(self, choice: Choice) -> None:
        """Keep how particles are trained."""
        ...

    def particle(self, cycle: int, index: int) -> Particle | None:
        """A finished particle, if it was kept."""
        ...

    def cycle(self, index: int) -> Cycle | None:
        """A finished cycle, if it was kept."""
        ...

    def keep_cycle(self, cycle: Cycle) -> None:
        """Keep a finished cycle; its particles were kept before."""
        ...

    def divergences(self) -> tuple[Divergence, ...]:
        """Trainings that broke, if that was kept."""
        ...

    def keep_divergence(self, divergence: Divergence) -> None:
        """Keep that a training broke, and nothing that it left half done."""
        ...

    def phase(self, cycle: int) -> Phase | None:
        """Where the particles of a cycle whose masks change were stopped, if that was kept."""
        ...

    def keep_phase(self, cycle: int, phase: Phase, *, due: bool = False) -> None:
        """Keep it in place of the one before. Unless it is `due` it may be left out, where the one before is recent."""
        ...

    def progress(self, cycle: int | None, particles: int, *, keep: bool = True) -> Progress:
        """Where the training of a cycle's particles (of the ticket: None) reports and, if `keep`, is kept."""
        ...

    def check_stop(self) -> None:
        """Asked between pieces of long work that are no training. May raise Interrupted."""
        ...

    def member(self, index: int, of: int = 1) -> "Store":
        """The store of one of so many members of an ensemble."""
        ...


@dataclass(frozen=True)
class NoStore:
    """Keeps nothing: every step is computed."""

    def ticket(self) -> Ticket | None:
        """Nothing was kept."""
        return None

    def keep_ticket(self, ticket: Ticket) -> None:
        """Nothing to do."""

    def choice(self) -> Choice | None:
        """Nothing was chosen."""
        return None

    def keep_choice(self, choice: Choice) -> None:
        """Nothing to do."""

    def particle(self, cycle: int, index: int) -> Particle | None:
        """Nothing was kept."""
        return None

    def cycle(self, index: int) -> Cycle | None:
        """Nothing was kept."""
        return None

    def keep_cycle(self, cycle: Cycle) -> None:
        """Nothing to do."""

    def divergences(self) -> tuple[Divergence, ...]:
        """Nothing was kept."""
        return ()

    def keep_divergence(self, divergence: Divergence) -> None:
        """Nothing to do."""

    def phase(self, cycle: int) -> Phase | None:
        """Nothing was kept."""
        return None

    def keep_phase(self, cycle: int, phase: Phase, *, due: bool = False) -> None:
        """Nothing to do."""

    def progress(self, cycle: int | None, particles: int, *, keep: bool = True) -> Progress:
        """Silence."""
        return Progress()

    def check_stop(self) -> None:
        """Nobody asks to stop."""

    def member(self, index: int, of: int = 1) -> "NoStore":
        """The same."""
        return self
