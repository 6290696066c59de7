"""Particles as one stack of tensors, moved by one step: for small networks, and for GPUs."""

import copy
import time
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from swamp.backends.backend import Group, Progress, Silent
from swamp.backends.particle import Particle
from swamp.backends.sequential import Job, Row, regrouped, rewind, rows_of
from swamp.backends.stack import Stack
from swamp.backends.step import Step
from swamp.backends.ticket import Ticket
from swamp.masks import Mask
from swamp.training import (
    BatchList,
    Data,
    OptimizerFactory,
    Seed,
    Snapshot,
    Task,
    TokenData,
    Training,
    a_seed,
    as_batch,
    copied,
    draws_globally,
    kinds,
    reset_statistics,
    shuffled_together,
)


class Stacked:
    """All in one stack of tensors that one compiled step moves: for small networks on CPU, and for GPUs.

    compiled: the step is compiled by torch, which takes seconds once and makes small networks several times faster.
    What cannot be compiled, stacked or held in memory is trained without, with a warning that says why.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: OptimizerFactory | None = None,
        *,
        compiled: bool = True,
        forked: bool = False,
    ) -> None:
        self.model = copy.deepcopy(model)
        self.task = task.to(next(model.parameters()).device)
        self.optimizer = optimizer
        self.compiled, self.forked = compiled, forked
        self.compiled_for: set[tuple[int, bool]] = set()
        self.most: int | None = None
        self.known: dict[Training, Step | str] = {}

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
        """See Backend.train. Equal to Sequential up to rounding."""
        groups = [Group(ticket, mask, seeds, progress or Silent())]
        return self.train_groups(groups, training, first=first, last=last)[0]

    def train_groups(
        self, groups: Sequence[Group], training: Training, *, first: int = 0, last: int | None = None
    ) -> list[list[Particle]]:
        """See AtOnce."""
        rows = rows_of(self.model, self.task, self.optimizer, groups, training, first, last)
        step = self.step(training)
        if isinstance(step, str):
            warnings.warn(f"particles are trained one after the other, not stacked: {step}", stacklevel=2)
            return regrouped(groups, [row.job.particle(row.number, row.seed) for row in rows])
        found: dict[int, Particle | None] = {}
        size, start = sum(group.size for group in groups), 0
        while start < size:
            places = range(start, min(size, start + (self.most or size)))
            try:
                found |= self._stack(step, [row for row in rows if row.place in places], places, len(groups) > 1)
                start = places.stop
            except RuntimeError as error:
                if not _out_of_memory(error) or len(places) == 1:
                    raise
                self.most = (len(places) + 1) // 2
                warnings.warn(
                    f"{len(places)} particles do not fit in memory at once; going on with {self.most}.", stacklevel=2
                )
        return regrouped(groups, [found[row.place] for row in rows])

    def step(self, training: Training) -> Step | str:
        """The step of stacked copies of this model, or why there is none."""
        if training not in self.known:
            if training.grad_accum_steps > 1:
                self.known[training] = "steps are accumulated in parts to save memory, which a stack would not."
            elif not _alike(self.task.train):
                self.known[training] = "the batches it was given differ in shape."
            elif draws_globally(self.model, self.task, training.batch_size):
                why = "the model draws random numbers by other means than dropout, from torch's one global generator."
                self.known[training] = why
            else:
                self.known[training] = self._tried(training)
        return self.known[training]

    def _tried(self, training: Training) -> Step | str:
        step = Step(self.model, self.task, training, forked=self.forked)
        job = Job(self.model, self.task, None, Ticket(self.model.state_dict(), 0), Mask({}), training, 0, 1, Silent())
        fresh = self._fresh(job)
        stack = Stack(step, [Row(job, n, Seed(n), n) for n in (0, 1)], [fresh, fresh], compiled=False)
        try:
            with warnings.catch_warnings():
                # Which of its operations torch has no rule to stack for is nothing a user could act on.
                warnings.filterwarnings("ignore", "There is a performance drop")
                stack.advance(0.0, *_batch(self.task, 8, 2, step.device))
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            return f"its forward pass cannot be stacked ({str(error).strip().splitlines()[0]})"
        return step

    def _fresh(self, job: Job) -> Snapshot:
        """A particle before its first step."""
        model = copy.deepcopy(self.model)
        rewind(model, job.ticket, job.mask)
        if job.training.reset_batchnorm:
            reset_statistics(model)
        return Snapshot(job.first, copied(model.state_dict()), {}, {}, 0, (), 0.0, 0)

    def _stack(self, step: Step, rows: Sequence[Row], places: range, own_masks: bool) -> dict[int, Particle | None]:
        """Place -> particle, None for those that broke, of `rows` in a stack of all `places`."""
        if not rows:
            return {}
        began = time.perf_counter()
        first = rows[0].job
        last = first.last
        if last is None:
            last = first.training.epochs * self.task.train.steps(first.training.batch_size)
        by_place = {row.place: row for row in rows}
        snapshots = {n: row.job.progress.unfinished(row.number) or self._fresh(row.job) for n, row in by_place.items()}
        # Copies that count for nothing stand for what broke, was finished before or is ahead of the others: a smaller
        # stack would round otherwise, and so do other places in it; and it would have to be compiled.
        whole = [by_place.get(n, rows[0]) for n in places]
        kind = len(whole), own_masks
        if self.compiled and kind not in self.compiled_for and any(s.step < last for s in snapshots.values()):
            self.compiled_for.add(kind)
            self._try_compiling(step, whole, own_masks)
        found: dict[int, Particle | None] = dict.fromkeys(by_place)
        while snapshots:
            # Particles that an interruption left at different steps: those behind catch up first.
            behind = min(snapshots, key=lambda n: snapshots[n].step)
            group = [n for n in snapshots if snapshots[n].step == snapshots[behind].step]
            starts = [snapshots[n if n in group else behind] for n in places]
            until = min([s.step for s in snapshots.values() if s.step > snapshots[behind].step], default=last)
            stack = Stack(step, whole, starts, compiled=self.compiled, own_masks=own_masks)
            stack.broken |= {n - places.start for n in places if n not in group}
            stack.run(until, last)
            if len(group) == len(snapshots):
                found |= self._reported(stack, (time.perf_counter() - began) / len(rows))
                break
            for n in group:
                if n - places.start in stack.broken:
                    del snapshots[n]
                else:
                    snapshots[n] = stack.snapshot(n - places.start)
        return found

    def _reported(self, stack: Stack, seconds: float) -> dict[int, Particle | None]:
        """The particles of a stack at its end."""
        whole = [(place, stack.rows[place]) for place in stack.whole_places]
        if len(whole) > 1:
            for place, row in whole:
                row.job.progress.ready(row.number, partial(stack.snapshot, place))

        def reported(place: int, row: Row) -> Particle:
            return row.job.reported(row.number, stack.trained(place, row.job.first), seconds)

        return {row.place: stack.unless_broken(place, partial(reported, place, row)) for place, row in whole}

    def _try_compiling(self, step: Step, rows: Sequence[Row], own_masks: bool) -> None:
        """Compile the step on particles that are thrown away; where it cannot be, say so and do without."""
        job = rows[0].job
        try:
            fresh = [self._fresh(job)] * len(rows)
            scratch = Stack(step, rows, fresh, compiled=True, own_masks=own_masks)
            with warnings.catch_warnings():
                # What torch's compiler has to say of its own parts is nothing a user could act on.
                warnings.simplefilter("ignore")
                scratch.advance(0.0, *_batch(self.task, job.training.batch_size, len(rows), step.device))
        except Exception as error:  # Whatever a compiler may raise, training goes on without it.
            if _out_of_memory(error):
                raise
            self.compiled = False
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"the stacked step runs uncompiled: {type(error).__name__}: {reason}", stacklevel=2)


class Forked(Stacked):
    """One CUDA graph in which each particle has a stream of its own: for GPUs and networks whose stack is slow."""

    def __init__(self, model: nn.Module, task: Task, optimizer: OptimizerFactory | None = None) -> None:
        super().__init__(model, task, optimizer, compiled=False, forked=True)


def _alike(data: Data) -> bool:
    """Whether every batch has the shape of every other."""
    shapes: set[str] = set()
    for part in kinds(data):
        if isinstance(part, TokenData):
            shapes |= {str(int(length)) for length in (part.lengths.min(), part.lengths.max())}
        elif isinstance(part, BatchList):
            shapes |= {str(tree_map(_shape, as_batch(batch))) for batch in part.batches}
    return len(shapes) < 2


def _shape(tensor: Tensor) -> str:
    return str(tensor.shape)


def _batch(task: Task, size: int, particles: int, device: torch.device) -> tuple[Any, Tensor]:
    """One batch of the training data for each particle, the same for all."""
    return next(shuffled_together(task.train, size, [a_seed(task.train)] * particles, 0, 0, device))


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
