"""A trainer of the user's own in the cycle loop: any function that trains a model in place."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from swamp.backends.backend import Progress, Silent
from swamp.backends.particle import Particle
from swamp.backends.sequential import Job, unbroken
from swamp.backends.ticket import Ticket
from swamp.errors import Diverged, SwampError
from swamp.masks import Mask
from swamp.training import (
    Fit,
    RunningMean,
    Seed,
    Snapshot,
    Task,
    Training,
    copied,
    isolated,
    require_finite_weights,
)


@dataclass(eq=False)
class Work:
    """One particle to train: `model`, which is at `mask * ticket.weights`, in place from step `first` up to `last`.

    The trainer keeps the zeros (`swamp.hold(work.model, work.mask, optimizer)`), calls `stepped()` after each
    optimizer step, and draws its batch order from `number`. Only `stepped` takes the samples of the average.
    """

    model: nn.Module
    mask: Mask
    training: Training
    seed: Seed
    first: int
    last: int
    per_epoch: int
    """Steps of an epoch."""
    tell: Callable[[int, "Work"], None] = lambda step, work: None
    step: int = field(init=False)
    """Steps taken, counted from the training's beginning: `first` at first."""
    mean: RunningMean = field(init=False)

    def __post_init__(self) -> None:
        self.step = self.first
        self.mean = RunningMean(decay=self.training.decay)

    @property
    def name(self) -> str:
        """Where this particle's logs and checkpoints belong, e.g. cycle-3-particle-1; `ticket` for the ticket."""
        return "-".join(map(str, self.seed.path))

    @property
    def number(self) -> int:
        """The seed as trainers take it: below 2 ** 31."""
        return self.seed.number() % 2**31

    @property
    def steps(self) -> int:
        """Optimizer steps to take."""
        return self.last - self.first

    @property
    def total(self) -> int:
        """Steps of the whole training, at which its schedule ends; a ticket is taken before."""
        return self.training.epochs * self.per_epoch

    def rate(self, step: int | None = None) -> float:
        """Learning rate of the next step, or of any, by the training's schedule with its constant tail."""
        return self.training.rate(min(self.step if step is None else step, self.total - 1), self.per_epoch)

    def stepped(self) -> None:
        """An optimizer step is taken: average the weights where they are a sample, report, stop where asked."""
        self.step += 1
        if self.step <= self.last and self.training.samples_at(self.step, self.per_epoch):
            self.mean.add(self.model.state_dict())
        self.tell(self.step, self)


Train = Callable[[Work], float]
"""Trains `work.model` in place; returns the mean training loss."""


class Own:
    """One after the other, by a function of the user's own that trains a model in place.

    Of `training` the loop itself uses the epochs, the batch size (to count steps with `task`) and when weights are
    averaged; everything else is the function's to use. An interrupted particle starts over. Global generators are
    seeded for each particle and restored after it.
    """

    def __init__(self, model: nn.Module, task: Task, train: Train) -> None:
        self.model, self.task, self.function = model, task, train

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
        """See Backend.train. Raises SwampError where the function took another number of steps than it was asked."""
        job = Job(self.model, self.task, None, ticket, mask, training, first, last, progress or Silent())
        return unbroken([job.trained_by(partial(self._one, job), index, seed) for index, seed in seeds])

    def _one(self, job: Job, model: nn.Module, index: int, seed: Seed) -> Fit:
        per_epoch = self.task.train.steps(job.training.batch_size)
        last = job.training.epochs * per_epoch if job.last is None else job.last

        def tell(step: int, work: Work) -> None:
            def snapshot() -> Snapshot:
                return Snapshot(step, copied(model.state_dict()), {}, work.mean.partial(), work.mean.count, (), 0.0, 0)

            job.progress.stepped(index, step, last, snapshot)

        work = Work(model, job.mask, job.training, seed, job.first, last, per_epoch, tell)
        with isolated(seed, next(model.parameters()).device):
            loss = self.function(work)
        if work.step != last:
            raise SwampError(
                f"the trainer took {work.step - job.first} steps where {work.steps} were asked for (Work.steps). Call "
                "work.stepped() after each optimizer step, and give the loop the task whose batches the trainer takes."
            )
        if not math.isfinite(loss):
            raise Diverged(f"the mean training loss is {loss} after step {last}. Lower the learning rate.", last)
        require_finite_weights(dict(model.named_parameters()), last, job.training)
        weights = work.mean.mean() if work.mean.count else copied(model.state_dict())
        whole = {name: value.contiguous() for name, value in weights.items()}
        return Fit(whole, work.mean.count, work.steps, (loss,))
