"""The reference backend: particles one after the other."""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, TypeVar

from torch import nn

from swamp.backends.backend import Group, Progress, Silent
from swamp.backends.particle import Particle
from swamp.backends.ticket import Ticket
from swamp.errors import Diverged, SwampError
from swamp.masks import Mask
from swamp.training import (
    Fit,
    OptimizerFactory,
    Seed,
    Shard,
    Snapshot,
    Task,
    Training,
    fit,
    require_finite_weights,
    reset_statistics,
)

T = TypeVar("T")


class Sequential:
    """One after the other, with all threads: the reference that every other backend must equal.

    `model` itself is left alone. optimizer: factory from parameters to any torch optimizer, in place of the one that
    `training` names. shard: the rows of this process where several processes train each particle (data parallelism).
    """

    def __init__(
        self, model: nn.Module, task: Task, optimizer: OptimizerFactory | None = None, *, shard: Shard | None = None
    ) -> None:
        self.model = copy.deepcopy(model)
        self.task = task.to(next(model.parameters()).device)
        self.optimizer, self.shard = optimizer, shard

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
        """See Backend.train."""
        job = Job(self.model, self.task, self.optimizer, ticket, mask, training, first, last, progress or Silent())
        job = replace(job, shard=self.shard)
        return job.particles(seeds)


@dataclass(frozen=True, eq=False)
class Job:
    """What one call of `Backend.train` asks for, and the training of one particle of it."""

    model: nn.Module
    task: Task
    optimizer: OptimizerFactory | None
    ticket: Ticket
    mask: Mask
    training: Training
    first: int
    last: int | None
    progress: Progress
    alone: bool = True
    """Whether no other training runs in this process at the same time."""
    beside: int = 1
    """Trainings that share the time of this one."""
    shard: Shard | None = None
    """The rows of this process where several processes train each particle."""

    def particles(self, seeds: Sequence[tuple[int, Seed]]) -> list[Particle]:
        """Train one after the other, and report each; those that broke are left out."""
        return unbroken([self.particle(index, seed) for index, seed in seeds])

    def particle(self, index: int, seed: Seed) -> Particle | None:
        """Train one particle and report it; None where it broke."""
        return self.trained_by(self.fitted, index, seed)

    def trained_by(self, train: Callable[[nn.Module, int, Seed], Fit], index: int, seed: Seed) -> Particle | None:
        """Report what `train` makes, in place, of a model at `mask * ticket.weights`; None where it broke."""
        return self.unless_broken(index, lambda: self._trained_by(train, index, seed))

    def unless_broken(self, index: int, work: Callable[[], T]) -> T | None:
        """What `work` gives; None where it raises Diverged and `progress` lets the others go on."""
        try:
            return work()
        except Diverged as error:
            told = Diverged(f"particle {index}: {error}", error.steps)
            told.__cause__ = error
            self.progress.broke(index, told)
            return None

    def _trained_by(self, train: Callable[[nn.Module, int, Seed], Fit], index: int, seed: Seed) -> Particle:
        began = time.perf_counter()
        # A copy each: what a state dict leaves out (a buffer that is not persistent) stays with its own particle.
        model = copy.deepcopy(self.model)
        rewind(model, self.ticket, self.mask)
        if self.training.reset_batchnorm:
            reset_statistics(model)
        trained = train(model, index, seed)
        return self.reported(index, trained, (time.perf_counter() - began) / self.beside)

    def fitted(self, model: nn.Module, index: int, seed: Seed) -> Fit:
        """The library's own loop."""

        def watch(step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
            self.progress.stepped(index, step, total, snapshot)

        return fit(
            model,
            self.task,
            self.training,
            seed,
            mask=self.mask,
            first=self.first,
            last=self.last,
            optimizer=self.optimizer,
            resume=self.progress.unfinished(index),
            watch=watch,
            alone=self.alone,
            shard=self.shard,
        )

    def reported(self, index: int, trained: Fit, seconds: float) -> Particle:
        """The particle that a training gave, checked and handed to `progress`. Raises Diverged for one that broke."""
        # The average too, and running statistics: one bad batch spoils these though the weights may be finite again.
        step = self.first + trained.steps
        require_finite_weights(trained.weights, step, self.training, beside=self.ticket.weights)
        self.mask.require_zeros(trained.weights)
        particle = Particle(
            trained.weights,
            index,
            self.ticket.id,
            self.mask.digest,
            trained.averaged,
            trained.steps,
            trained.losses,
            seconds,
        )
        self.progress.finished(particle)
        return particle


class Row(NamedTuple):
    """One particle of those that are trained at once, and the job of its group."""

    job: Job
    number: int
    """The particle's index in its group."""
    seed: Seed
    place: int
    """Among all of all groups."""


def rows_of(
    model: nn.Module,
    task: Task,
    optimizer: OptimizerFactory | None,
    groups: Sequence[Group],
    training: Training,
    first: int,
    last: int | None,
) -> list[Row]:
    """The particles of all groups, in their order."""
    rows: list[Row] = []
    start = 0
    for group in groups:
        job = Job(model, task, optimizer, group.ticket, group.mask, training, first, last, group.progress)
        for n, (index, seed) in enumerate(group.seeds):
            rows.append(Row(job, index, seed, start + (index if group.of else n)))
        start += group.size
    return rows


def regrouped(groups: Sequence[Group], particles: Sequence[Particle | None]) -> list[list[Particle]]:
    """What the rows of `rows_of` gave, group by group; those that broke are left out."""
    given = iter(particles)
    return [unbroken(islice(given, len(group.seeds))) for group in groups]


def unbroken(particles: Iterable[Particle | None]) -> list[Particle]:
    """Those that did not break."""
    return [particle for particle in particles if particle is not None]


def rewind(model: nn.Module, ticket: Ticket, mask: Mask) -> None:
    """Set `model` to mask * ticket.weights: survivors bit-equal to the ticket, the rest exactly zero.

    Raises SwampError for the ticket of another model.
    """
    try:
        model.load_state_dict(dict(ticket.weights))
    except RuntimeError as error:
        raise SwampError(
            f"the ticket does not fit this {type(model).__name__}: {error}. Use its own ticket."
        ) from error
    mask.apply_(model)
