"""A user's own trainer in the cycle loop: any function that trains a model in place."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn

from swamp.backends.base import TrainRequest
from swamp.backends.extra_state import copied_state
from swamp.backends.particle import Particle
from swamp.backends.sequential import ParticleJob
from swamp.errors import Diverged, SwampError
from swamp.masks import Mask
from swamp.training import RunningMean, Seed, Task, Training
from swamp.training.average import copied
from swamp.training.loop import Fit
from swamp.training.module_extra_state import load_state
from swamp.training.nan_checks import require_finite_weights
from swamp.training.rng import isolated
from swamp.training.snapshot import Snapshot

_NO_STATE: Mapping[str, Any] = MappingProxyType({})


@dataclass(eq=False)
class TrainJob:
    """One particle to train in place, from step `first` to step `last`.

    The trainer keeps the zeros with `swamp.hold(job.model, job.mask, optimizer)`, calls `job.stepped()` after each
    optimizer step, and takes its batch order from `job.number`. `stepped` alone takes the samples of the average.
    """

    model: nn.Module
    """The model to train, with the weights `mask * ticket.weights`."""
    mask: Mask
    training: Training
    seed: Seed
    first: int
    last: int
    per_epoch: int
    """Steps of an epoch."""
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    """Extra state beside the model: a discriminator's state dict, a replay buffer, an EMA. At the beginning it is what
    the ticket's training left (at first, the trainer's `state`); at the end it is kept with the particle."""
    on_step: Callable[[int, "TrainJob"], None] = lambda step, job: None
    step: int = field(init=False)
    """Steps taken, counted from the beginning of the schedule: `first` before the first."""
    mean: RunningMean = field(init=False)

    def __post_init__(self) -> None:
        self.step = self.first
        self.mean = RunningMean(decay=self.training.decay)

    def continue_from(self, snapshot: Snapshot) -> None:
        """Start at the weights and the running mean of a trunk; its optimizer state is the trainer's, in `state`."""
        load_state(self.model, snapshot.weights)
        like, decay = self.model.state_dict(), self.training.decay
        self.mean = RunningMean(snapshot.mean, snapshot.averaged, like, decay=decay)

    @property
    def name(self) -> str:
        """A name for this particle's logs and checkpoints, e.g. cycle-3-particle-1, or `ticket`."""
        return "-".join(map(str, self.seed.path))

    @property
    def number(self) -> int:
        """The seed as an integer below 2 ** 31, as trainers take it."""
        return self.seed.number() % 2**31

    @property
    def steps(self) -> int:
        """Optimizer steps to take."""
        return self.last - self.first

    @property
    def total(self) -> int:
        """Steps of the whole schedule; a ticket stops earlier."""
        return self.training.epochs * self.per_epoch

    def rate(self, step: int | None = None) -> float:
        """Learning rate of the next step, or of `step`, by the schedule of `training`."""
        return self.training.rate(min(self.step if step is None else step, self.total - 1), self.per_epoch)

    def stepped(self) -> None:
        """Call after each optimizer step: takes samples of the average, and reports. May raise Interrupted."""
        self.step += 1
        if self.step <= self.last and self.training.samples_at(self.step, self.per_epoch):
            self.mean.add(self.model.state_dict())
        self.on_step(self.step, self)


TrainFunction = Callable[[TrainJob], float]
"""Trains `job.model` in place; returns the mean training loss."""


class CustomTrainer:
    """Trains particles sequentially by a user's function that trains a model in place.

    Of `training` the library uses the epochs, the batch size (to count the steps of `task`) and when weights are
    averaged; everything else is the function's to use. An interrupted particle starts again. The global generators are
    seeded for each particle and restored afterwards.

    Extra state (`job.state`) travels with the ticket, so that all particles start with the same, and each particle
    keeps its own; methods that continue from pruned weights go on with the first particle's. It is stored with them in
    the run directory.

    Args:
        model: Architecture of the particles; each is trained as a copy.
        task: Its training data determine the number of steps (None: `steps_per_epoch` does).
        train: Trains `job.model` in place and returns the mean training loss.
        steps_per_epoch: Optimizer steps of an epoch, for a loop whose steps do not follow from the task's data. With 1,
            `Training.epochs` counts steps.
        state: Extra state at the beginning: tensors, numbers, and dicts and lists of them, as state dicts are.

    Raises:
        SwampError: If there is neither a task nor `steps_per_epoch`, or a value of `state` cannot be stored.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task | None,
        train: TrainFunction,
        *,
        steps_per_epoch: int | None = None,
        state: Mapping[str, Any] = _NO_STATE,
    ) -> None:
        if task is None and steps_per_epoch is None:
            raise SwampError("a custom trainer without a task needs steps_per_epoch, its optimizer steps in an epoch.")
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise SwampError(f"steps_per_epoch must be 1 or more, got {steps_per_epoch}.")
        self.model, self.task, self.function = model, task, train
        self.steps_per_epoch, self.state = steps_per_epoch, copied_state(state)

    def train(self, request: TrainRequest) -> list[Particle]:
        """See Backend.train. Raises SwampError where the function took another number of steps than `job.steps`."""
        job = ParticleJob(self.model, cast(Task, self.task), None, request)  # the function trains
        found = [job.train(index, seed, partial(self._train, request)) for index, seed in request.seeds]
        return [particle for particle in found if particle is not None]

    def _train(self, request: TrainRequest, model: nn.Module, index: int, seed: Seed) -> Fit:
        training, first = request.training, request.first
        per_epoch = self._per_epoch(training)
        last = request.last_step(per_epoch)

        def on_step(step: int, own: TrainJob) -> None:
            def snapshot() -> Snapshot:
                return Snapshot(step, copied(model.state_dict()), {}, own.mean.partial(), own.mean.count, (), 0.0, 0)

            request.progress.on_step(index, step, last, snapshot)

        trunk = request.trunk
        state = copied_state((trunk.state if trunk else request.ticket.state) or self.state)
        own = TrainJob(model, request.mask, training, seed, first, last, per_epoch, state, on_step)
        if trunk is not None:
            own.continue_from(trunk.snapshot)
        # Pretrained models come in evaluation mode, in which Lightning would train them.
        model.train()
        # The function may move a model on the CPU to the GPU.
        start = next(model.parameters()).device
        device = torch.device("cuda") if start.type == "cpu" and torch.cuda.is_available() else start
        with isolated(seed, device):
            loss: Any = self.function(own)
        if not isinstance(loss, Real):  # NumPy's numbers too
            raise SwampError(
                f"the trainer must return the mean training loss, a number, and it returned a {type(loss).__name__}."
            )
        if own.step != last:
            raise SwampError(
                f"the trainer took {own.step - first} steps where {own.steps} were asked for (TrainJob.steps). "
                "Call job.stepped() after each optimizer step, and give the loop the task whose batches the trainer "
                "takes."
            )
        if not math.isfinite(loss):
            raise Diverged(f"the mean training loss is {loss} after step {last}. Lower the learning rate.", last)
        require_finite_weights(dict(model.named_parameters()), last, training)
        weights = own.mean.mean() if own.mean.count else copied(model.state_dict())
        whole = {name: value.contiguous() for name, value in weights.items()}
        return Fit(whole, own.mean.count, own.steps, (float(loss),), copied_state(own.state))

    def _per_epoch(self, training: Training) -> int:
        steps = self.steps_per_epoch if self.task is None else self.task.train.steps(training.batch_size)
        assert steps is not None
        if self.steps_per_epoch not in (None, steps):
            raise SwampError(
                f"the trainer has steps_per_epoch={self.steps_per_epoch}, and the task's data give {steps} steps of "
                f"{training.batch_size} examples. Give one of them, or the same."
            )
        return steps
