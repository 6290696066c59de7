"""When is a ticket stable? Instability analysis (Frankle et al. 2020), and the search for the earliest stable step."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from swamp.algorithms import Plan
from swamp.analysis.connectivity import segment
from swamp.analysis.points import Points
from swamp.backends import Backend, Particle, Progress, Ticket
from swamp.errors import SwampError
from swamp.masks import Mask, prune_mask
from swamp.training import Seed, Task, Training


@dataclass(frozen=True)
class Trial:
    """One step at which the ticket was tried."""

    steps: int
    barrier: float
    """Error barrier, in [0, 1], between two copies trained from there."""
    seconds: float
    repeat: int
    """Which pair of batch orders: 0 in the search, 1 in the verification."""


@dataclass(frozen=True)
class Found:
    """The outcome of a search."""

    steps: int | None
    """The earliest step found stable; None where not even the last one is."""
    trials: tuple[Trial, ...]
    """In the order in which they were made, those of the verification last."""
    holds: bool
    """Whether, with other batch orders, the ticket was stable there, and unstable at a quarter of these steps."""


def search(
    barrier_at: Callable[[int, int], float],
    last: int,
    *,
    threshold: float = 0.02,
    resolution: float = 0.1,
    tell: Callable[[Trial], None] = lambda trial: None,
) -> Found:
    """The earliest step in [0, last] from which two copies end with an error barrier below `threshold`.

    barrier_at: (step, repeat) -> barrier; another repeat takes other batch orders. Bisection on a logarithmic scale, as
    networks become stable early, until the bracket is `resolution` of the step (0: exactly); told of every trial. It
    assumes that a ticket which is stable stays so later. That is checked, and no more than checked: the step found is
    tried again with other batch orders, and a quarter of it, which must not be stable; `Found.holds` says so.
    """
    if last < 0 or not 0 <= resolution < 1:
        raise SwampError(f"last must be 0 or more and resolution in [0, 1), got {last} and {resolution}.")
    trials: list[Trial] = []

    def stable(steps: int, repeat: int = 0) -> bool:
        began = time.perf_counter()
        barrier = barrier_at(steps, repeat)
        trials.append(Trial(steps, barrier, time.perf_counter() - began, repeat))
        tell(trials[-1])
        return barrier < threshold

    if not stable(last):
        return Found(None, tuple(trials), False)
    low, high = 0, last
    if last and stable(0):
        high = 0
    while high - low > max(1, resolution * high):
        middle = min(max(round((max(low, 1) * high) ** 0.5), low + 1), high - 1)
        low, high = (low, middle) if stable(middle) else (middle, high)
    again = stable(high, 1)
    # A quarter of a step or two is the beginning itself, which the search has tried.
    holds = again and (not high or not stable(high // 4, 1))
    return Found(high, tuple(trials), holds)


@dataclass(eq=False)
class Instability:
    """Barriers between two copies trained from tickets of one dense training, at one sparsity.

    The ticket, its training and the copies' are those of a run with this plan and training: particles that differ in
    batch order alone. Above sparsity 0 they live on the mask that global magnitude (the plan's allocation, structure
    and floor) leaves of a dense network trained from the same ticket.
    """

    model: nn.Module
    """With its initial weights."""
    task: Task
    plan: Plan
    training: Training
    backend: Backend
    sparsity: float
    points: int = 30
    progress: Progress | None = None
    """Told of every step; raises Interrupted to stop."""

    def __post_init__(self) -> None:
        method = self.plan.setting
        if method.alone:
            raise SwampError(f"{self.plan.method} has no ticket: it begins at the initial weights.")
        if not 0 <= self.sparsity < 1:
            raise SwampError(f"the sparsity to look at must lie in [0, 1), got {self.sparsity:g}.")
        self.dense = Mask.ones(self.model, self.plan.scope)
        self.per_epoch = self.task.train.steps(self.training.batch_size)
        self.seed = Seed(self.plan.seed)
        self.ticket_training = self.training.plain()
        self.advance = self.training.after_rewind == "advance"
        self.training = method.training(self.training, self.plan.most_particles)
        self.points_of = Points(self.model, self.task, examples=self.plan.evaluation_examples)

    @property
    def last(self) -> int:
        """The latest step a run may take its ticket at."""
        return self.ticket_training.epochs * self.per_epoch - self.advance

    def barrier_at(self, steps: int, repeat: int = 0) -> float:
        """The error barrier between two copies trained from the ticket after `steps` steps. See `search`."""
        ticket = self.ticket(steps)
        mask = self.mask(ticket)
        one, other = self.trained(ticket, mask, [self.seed.at("instability", repeat, "copy", i) for i in range(2)])
        return segment(self.points_of, one.weights, other.weights, self.points).barriers.error

    def ticket(self, steps: int) -> Ticket:
        """The very ticket that a run takes after so many steps."""
        ticket = Ticket(self.model.state_dict(), 0)
        if not steps:
            return ticket
        seeds = [(0, self.seed.at("ticket"))]
        (trained,) = self.backend.train(
            ticket, self.dense, self.ticket_training, seeds, last=steps, progress=self.progress
        )
        return Ticket(trained.weights, steps)

    def mask(self, ticket: Ticket) -> Mask:
        """The mask on which copies of this ticket train."""
        kept = round((1 - self.sparsity) * self.dense.prunable)
        if kept == self.dense.nnz:
            return self.dense
        (trained,) = self.trained(ticket, self.dense, [self.seed.at("cycle", 0, "particle", 0)])
        scores = {name: trained.weights[name].abs() for name in self.dense}
        plan = self.plan
        return prune_mask(
            self.dense, scores, kept, allocation=plan.allotment, structure=plan.structure, min_per_layer=plan.floor
        )

    def trained(self, ticket: Ticket, mask: Mask, seeds: list[Seed]) -> list[Particle]:
        """Copies of the ticket, trained as a run's particles are."""
        first = ticket.steps if self.advance else 0
        numbered = list(enumerate(seeds))
        return self.backend.train(ticket, mask, self.training, numbered, first=first, progress=self.progress)

    def to_json(self, trial: Trial) -> dict[str, Any]:
        """A trial with its step in epochs."""
        return {**trial.__dict__, "epochs": trial.steps / self.per_epoch}
