"""Store: keeps the finished steps of a run, so that an interrupted run can continue."""

from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from swamp.algorithms.cycle import Cycle, Divergence
from swamp.backends import Particle, Progress, Ticket
from swamp.backends.autotune import Choice
from swamp.backends.ticket import Trunk
from swamp.masks import Mask
from swamp.training.average import State
from swamp.training.snapshot import Snapshot


@dataclass(frozen=True, eq=False)
class Phase:
    """Particles with changing masks, stopped right after a change of the masks."""

    step: int
    masks: tuple[Mask, ...]
    """One mask for all particles, or one for each."""
    snapshots: tuple[Snapshot, ...]
    """One for each particle (one in all before they separate); none before the first step."""
    mean: State
    """Uncast mean of the samples of a cyclic tail."""
    averaged: int
    flops: float
    seconds: float
    dual: State = field(default_factory=dict[str, Tensor])
    """Dual variable u of SAFE, by parameter."""


class Store:
    """Keeps the finished steps of a run: a step is skipped if its output is stored, which is how a run resumes.

    This base class stores nothing: every step is computed.
    """

    def ticket(self) -> Ticket | None:
        """The stored ticket, or None."""
        return None

    def keep_ticket(self, ticket: Ticket) -> None:
        """Keep the ticket."""

    def choice(self) -> Choice | None:
        """The stored choice of backend, or None."""
        return None

    def keep_choice(self, choice: Choice) -> None:
        """Store the choice of backend."""

    def particle(self, cycle: int, index: int) -> Particle | None:
        """A stored particle, or None."""
        return None

    def cycle(self, index: int) -> Cycle | None:
        """A stored cycle, or None."""
        return None

    def keep_cycle(self, cycle: Cycle) -> None:
        """Store a finished cycle; its particles are stored already."""

    def divergences(self) -> tuple[Divergence, ...]:
        """The stored divergences."""
        return ()

    def keep_divergence(self, divergence: Divergence) -> None:
        """Store a divergence, and delete the snapshot of the diverged training."""

    def phase(self, cycle: int) -> Phase | None:
        """The stored phase of a cycle with changing masks, or None."""
        return None

    def keep_phase(self, cycle: int, phase: Phase, *, due: bool = False) -> None:
        """Store a phase in place of the previous one. Unless `due`, it may be skipped if the previous one is recent."""

    def trunk(self, cycle: int) -> Trunk | None:
        """The stored trunk of a cycle, or None."""
        return None

    def keep_trunk(self, cycle: int, trunk: Trunk) -> None:
        """Store the trunk of a cycle."""

    def progress(self, cycle: int | None, particles: int, *, keep: bool = True, trunk: int = 0) -> Progress:
        """Progress of the particles of a cycle (None: of the ticket); with `keep` it stores snapshots and particles.

        trunk: steps of the trunk that the particles share.
        """
        return Progress()

    def check_stop(self) -> None:
        """Called between long pieces of work other than training. May raise Interrupted."""

    def member(self, index: int, of: int = 1) -> Self:
        """The store of member `index` of an ensemble of `of`."""
        return self
