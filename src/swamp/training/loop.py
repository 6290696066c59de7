"""The one training loop, and the training of one model by it."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from swamp.batches import Batch, batch_to, rows_of
from swamp.errors import Diverged, SwampError
from swamp.masks import Mask, hold, hold_gradients
from swamp.masks.dtensor import full_tensor, gathered_copy, is_sharded, shard_like
from swamp.masks.enforce import preserves_zeros
from swamp.model_copy import copied_model
from swamp.training.average import RunningMean, copied
from swamp.training.data import TensorData, sampled
from swamp.training.dropout import DropoutStream
from swamp.training.memory_format import to_fastest_memory_format, to_memory_format
from swamp.training.mixed_precision import Autocast
from swamp.training.module_extra_state import as_tensors, load_state
from swamp.training.nan_checks import require_finite, require_finite_memory, require_finite_weights
from swamp.training.optimizers import (
    OptimizerFactory,
    build_optimizer,
    evaluation_weights,
    has_modes,
    rate_ratios,
    set_rate,
    use_dense_gradients,
)
from swamp.training.options import Training
from swamp.training.rng import Seed, draws_global, isolated
from swamp.training.sam import gradient_of, perturbed, second_gradient
from swamp.training.shard import Shard
from swamp.training.snapshot import LazySnapshot, Snapshot, epoch_mean, load_optimizer, optimizer_tensors
from swamp.training.streams import close_streams
from swamp.training.sum_loss import sum_loss
from swamp.training.task import Loss, Task

_FEW = 8
"""Examples of the step that `uses_global_rng` takes."""


class TrainState(Protocol):
    """What `train_loop` trains: one model, or a stack of N models. Backends differ in `step` alone."""

    @property
    def active(self) -> bool:
        """Whether anything is left to train."""
        ...

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch, without the first `first` batches."""
        ...

    def step(self, step: int, rate: float, batch: Batch) -> None:
        """Take optimizer step number `step` (from 0) with learning rate `rate`."""
        ...

    def end_epoch(self, step: int) -> None:
        """Read the epoch's mean loss after `step` steps. Raises Diverged where it is not finite."""
        ...

    def sample(self) -> None:
        """Add the present weights to the running mean."""
        ...

    def report(self, step: int, last: int) -> None:
        """Report step `step` of `last`. May raise Interrupted."""
        ...


def train_loop(state: TrainState, training: Training, per_epoch: int, first: int, stop: int, last: int) -> None:
    """Train `state` from step `first` to step `stop`, of a training that ends at step `last`."""
    step = first
    while step < stop and state.active:
        epoch, within = divmod(step, per_epoch)
        end = (epoch + 1) * per_epoch
        for batch in islice(state.batches(epoch, within), min(end, stop) - step):
            state.step(step, training.rate(step, per_epoch), batch)
            step += 1
            if step == end:
                state.end_epoch(step)
            if training.samples_at(step, per_epoch):
                state.sample()
            state.report(step, last)
        if step < min(end, stop):
            given = step - epoch * per_epoch
            raise SwampError(f"the training data promised {per_epoch} batches an epoch and gave {given}.")


@dataclass(frozen=True, eq=False)
class Fit:
    """The result of one training."""

    weights: dict[str, Tensor]
    """State dict: the mean or moving average where weights were averaged, else the last iterate."""
    averaged: int
    """Samples in the average (0: none was taken)."""
    steps: int
    """Optimizer steps taken."""
    losses: tuple[float, ...]
    """Mean training loss of each epoch."""
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Extra state of a custom trainer."""


OnStep = Callable[[int, int, Callable[[], Snapshot]], None]
"""Called after every step with (step, total, snapshot). May save `snapshot()`, or raise Interrupted to stop."""


def fit(
    model: nn.Module,
    task: Task,
    training: Training,
    seed: Seed,
    *,
    mask: Mask | None = None,
    first: int = 0,
    last: int | None = None,
    optimizer: OptimizerFactory | None = None,
    resume: Snapshot | None = None,
    on_step: OnStep | None = None,
    exclusive: bool = True,
    shard: Shard | None = None,
) -> Fit:
    """Train `model` in place on the support of `mask`.

    The batch of every step is a pure function of `seed` and the step.

    Args:
        model: Trained from its present weights.
        task: Data, loss and forward pass.
        training: Learning rates, epochs, averaging.
        seed: Of batch order, augmentation and dropout.
        mask: Weights that are trained; all others stay exactly zero (None: all are trained).
        first: Step at which training starts, counted from the beginning of the schedule.
        last: Step at which training stops (default: the end of the schedule).
        optimizer: Factory from parameters to a torch optimizer (default: the one that `training` names).
        resume: Where an interrupted training stopped.
        on_step: Called after every step.
        exclusive: Seed the global generators for this training and restore them afterwards. Otherwise only dropout may
            be random, and draws from its own generator.
        shard: Shard of each batch that this process computes, where several processes train one model.

    Returns:
        The trained weights; `model` holds the last iterate.

    Raises:
        Diverged: The loss or a weight is not finite; the loss is checked once an epoch.
    """
    if resume is not None:
        load_state(model, resume.weights)
    state = _ModelState(model, task, training, seed, optimizer, exclusive, shard, on_step)
    last = state.total if last is None else last
    start = first if resume is None else state.restore(resume)
    with isolated(seed, state.device) if exclusive else nullcontext(), state.held(mask):
        model.train()
        train_loop(state, training, state.per_epoch, start, last, last)
        if last == state.total:
            close_streams(task.train, training.batch_size, [seed])
        # Before the mask is checked, which would take a NaN among the pruned weights for a mask that was not kept.
        state.require_finite(max(start, last))
        state.end()
    # The weights of a schedule-free optimizer are an average of all its steps.
    averaged = state.mean.count or (last if has_modes(state.optimizer) else 0)
    weights = state.mean.mean() if state.mean.count else copied(model.state_dict())
    # Averaged, hashed and stored weights are whole tensors in the usual memory format, whatever training used.
    weights = {name: full_tensor(value).contiguous() for name, value in weights.items()}
    return Fit(weights, averaged, max(start, last) - first, tuple(state.losses))


def uses_global_rng(model: nn.Module, task: Task, training: Training, optimizer: OptimizerFactory | None) -> bool:
    """Whether a training step draws from the global generators, which only one training at a time may use.

    The model, the loss, the optimizer and the augmentation may; dropout and augmentation with the given generator do
    not. A step on a few examples is taken with a copy of the model.
    """
    few = replace(task, train=sampled(task.train, _FEW))
    short = replace(training, batch_size=min(_FEW, training.batch_size), grad_accum_steps=1)
    model = copied_model(model)

    def step() -> None:
        with suppress(Diverged):
            fit(model, few, short, Seed(0).at("probe"), last=1, optimizer=optimizer, exclusive=False)

    augmented = isinstance(task.train, TensorData) and task.train.augment_draws
    return augmented or draws_global(step, next(model.parameters()).device)


class _ModelState:
    """One model in training: see TrainState."""

    active = True

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        training: Training,
        seed: Seed,
        optimizer: OptimizerFactory | None,
        exclusive: bool,
        shard: Shard | None,
        on_step: OnStep | None,
    ) -> None:
        self.model, self.task, self.training, self.seed = model, task, training, seed
        self.shard, self.on_step = shard, on_step
        self.device = next(model.parameters()).device
        sharded = shard is not None and shard.shard_parameters(model)
        bfloat16 = training.precision == "bfloat16"
        self.memory_format = (
            torch.contiguous_format
            if sharded
            else to_fastest_memory_format(model, task.train, task.forward, bfloat16=bfloat16)
        )
        use_dense_gradients(model)
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer: Optimizer = (optimizer or partial(build_optimizer, training=training))(self.trainable)
        self.rate_ratios = rate_ratios(self.optimizer)
        if has_modes(self.optimizer):
            cast(Any, self.optimizer).train()
        self.per_epoch = task.train.steps(training.batch_size)
        self.total = training.epochs * self.per_epoch
        self.loss = smoothed(task.loss, training.label_smoothing)
        self.sum_loss = sum_loss(self.loss)
        self.dropout = DropoutStream(model, seed.at("noise").number(), self.device, exclusive)
        self.autocast: Callable[[], AbstractContextManager[None]] = Autocast(self.device) if bfloat16 else nullcontext
        self.mask_gradients: Callable[[], None] | None = None
        self.mean = RunningMean(decay=training.decay)
        self.previous_gradient: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.rate = math.nan
        self.losses: list[float] = []
        self.running_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.losses_seen = 0

    @contextmanager
    def held(self, mask: Mask | None) -> Generator[None]:
        """Keep pruned weights at zero inside the block."""
        if mask is None:
            yield
        elif preserves_zeros(self.optimizer):
            with hold_gradients(self.model, mask, self.optimizer) as self.mask_gradients:
                yield
        else:
            # The gradients of an unknown optimizer are masked here too: the sum over processes comes after the hooks.
            with hold(self.model, mask, self.optimizer):
                yield

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        return self.task.train.shuffled(self.training.batch_size, self.seed, epoch, first)

    def step(self, step: int, rate: float, batch: Batch) -> None:
        batch, self.rate = batch_to(batch, self.device), rate
        set_rate(self.optimizer, rate, self.rate_ratios)
        loss = self._sam_backward(step, batch) if self.training.sam else self._backward(step, batch)
        if self.training.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        if self.anchor:
            self._add_penalty(self.training.penalty_at(step, self.per_epoch))
        self.optimizer.step()
        self.running_loss += loss
        self.losses_seen += 1

    @torch.no_grad()
    def _add_penalty(self, weight: float) -> None:
        """Add the gradient of weight / 2 |w - anchor|^2."""
        for name, parameter in self.model.named_parameters():
            if name in self.anchor and parameter.grad is not None:
                parameter.grad.add_(parameter - self.anchor[name], alpha=weight)

    def _sam_backward(self, step: int, batch: Batch) -> Tensor:
        """`_backward` where the loss is worst nearby."""
        radius, sharpness = self.training.sam, self.training.sharpness
        if self.training.uses_previous_gradient:
            with perturbed(self.model, self.previous_gradient, radius):
                loss = self._backward(step, batch)
            self.previous_gradient = gradient_of(self.model)
            return loss
        loss = self._backward(step, batch)
        with second_gradient(self.model, radius, sharpness):
            self._backward(step, batch)
        return loss

    def _backward(self, step: int, batch: Batch) -> Tensor:
        """Leave the masked gradient of one batch in the model; the loss stays on the device."""
        # As optimizer.zero_grad, without the profiler's record around it.
        for parameter in self.trainable:
            parameter.grad = None
        inputs, targets = batch
        loss = torch.zeros((), device=self.device)
        for rows in self._accumulated_rows(len(targets)):
            loss = loss + (
                self._backward_batch(step, inputs, targets)
                if rows is None
                else self._backward_rows(step, inputs, targets, rows)
            )
        if self.shard is not None:
            self._all_reduce(self.shard, loss)
            self.dropout.join(step)
        if self.mask_gradients is not None:
            self.mask_gradients()
        return loss

    def _all_reduce(self, shard: Shard, loss: Tensor) -> None:
        """Sum loss and gradients over the processes. A weight that none of them used has no gradient, as in one."""
        local = [parameter for parameter in self.trainable if not is_sharded(parameter)]
        used = torch.tensor([float(parameter.grad is not None) for parameter in local], dtype=loss.dtype).to(
            self.device
        )
        missing = [(place, parameter) for place, parameter in enumerate(local) if parameter.grad is None]
        for _, parameter in missing:
            parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.trainable if parameter.grad is not None]
        shard.all_reduce([*gradients, used, loss])
        for place, parameter in missing:
            if not used[place]:
                parameter.grad = None

    def _accumulated_rows(self, examples: int) -> list[slice | None]:
        """The rows of a batch that are computed in turn; None: all of it."""
        count = self.training.grad_accum_steps
        if self.shard is None and count == 1:
            return [None]
        rows = slice(0, examples) if self.shard is None else self.shard.rows(examples)
        size = rows.stop - rows.start
        # Ranks compute together, so that each needs as many parts as the others.
        if self.shard is not None and size < count:
            raise SwampError(f"a rank has {size} examples a step, too few to accumulate over {count} parts.")
        count = min(count, size)
        borders = [rows.start + size * number // count for number in range(count + 1)]
        return [slice(*pair) for pair in pairwise(borders)]

    def _backward_batch(self, step: int, inputs: Any, targets: Tensor) -> Tensor:
        inputs = to_memory_format(inputs, self.memory_format)
        with self.autocast(), self.dropout.at(step, None, len(targets)):
            loss = self.loss(self.task.forward(self.model, inputs), targets)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss.detach()

    def _backward_rows(self, step: int, inputs: Any, targets: Tensor, rows: slice) -> Tensor:
        """Add the gradient of these rows to the model's; their share of the batch's mean loss."""
        part = to_memory_format(rows_of(inputs, rows), self.memory_format)
        with self.shard.synchronised_batchnorm() if self.shard else nullcontext():
            with self.autocast(), self.dropout.at(step, rows, len(targets)):
                outputs = self.task.forward(self.model, part)
                if self.sum_loss is None:
                    loss = self.loss(outputs, targets[rows]) * ((rows.stop - rows.start) / len(targets))
                else:
                    loss = self.sum_loss.total(outputs, targets[rows]) / self.sum_loss.weight(targets)
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss.detach()

    def end_epoch(self, step: int) -> None:
        mean_loss = float(self.running_loss) / self.losses_seen
        self.losses.append(mean_loss)
        self.running_loss.zero_()
        self.losses_seen = 0
        require_finite(mean_loss, step, self.training, self.per_epoch, self.trainable[0])

    def sample(self) -> None:
        with evaluation_weights(self.optimizer):
            self.mean.add(self.model.state_dict())

    def end(self) -> None:
        """Leave the weights for evaluation in the model."""
        if has_modes(self.optimizer):
            cast(Any, self.optimizer).eval()

    def report(self, step: int, last: int) -> None:
        if self.on_step is not None:
            self.on_step(step, last, LazySnapshot(partial(self.snapshot, step), self.present_loss, self.rate))

    def present_loss(self) -> float:
        return epoch_mean(self.losses, self.running_loss, self.losses_seen)

    def require_finite(self, step: int) -> None:
        """Raise Diverged where a weight, or the optimizer's state of one, is not finite."""
        weights = dict(self.model.named_parameters())
        require_finite_weights(weights, step, self.training)
        memory = {
            f"{place}/{key}": value
            for place, parameter in enumerate(weights.values())
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items())
            if isinstance(value, Tensor) and value.shape == parameter.shape
        }
        require_finite_memory(memory, list(weights), step)

    def snapshot(self, step: int) -> Snapshot:
        # The loss sum in mid-epoch is kept bit for bit, so that the resumed record is the same.
        return Snapshot(
            step,
            {name: gathered_copy(value) for name, value in as_tensors(self.model.state_dict()).items()},
            optimizer_tensors(self.optimizer),
            self.mean.partial(),
            self.mean.count,
            tuple(self.losses),
            float(self.running_loss),
            self.losses_seen,
            {name: gathered_copy(value) for name, value in self.previous_gradient.items()},
            {name: gathered_copy(value) for name, value in self.anchor.items()},
        )

    def restore(self, snapshot: Snapshot) -> int:
        """Continue from `snapshot`; the model has its weights already. Returns its step."""
        load_optimizer(self.optimizer, snapshot.optimizer)
        # The mean is kept in a wider type than the weights; it is cast to theirs even if no sample is added.
        state = as_tensors(self.model.state_dict())
        kept = [(name, snapshot.mean[name], like) for name, like in state.items() if name in snapshot.mean]
        mean = {name: shard_like(tensor, like, tensor.dtype) for name, tensor, like in kept}
        self.mean = RunningMean(mean, snapshot.averaged, like=state, decay=self.training.decay)
        named = dict(self.model.named_parameters())
        self.previous_gradient, self.anchor = (
            {n: shard_like(kept[n], p, p.dtype) for n, p in named.items() if n in kept}
            for kept in (snapshot.gradient, snapshot.anchor)
        )
        self.losses = list(snapshot.losses)
        self.running_loss.fill_(snapshot.running_loss)
        self.losses_seen = snapshot.losses_seen
        return snapshot.step


def smoothed(loss: Loss, smoothing: float) -> Loss:
    """The loss with label smoothing. Raises SwampError for another loss than the cross-entropy."""
    if not smoothing:
        return loss
    if loss is not F.cross_entropy:
        raise SwampError(
            "label_smoothing belongs to the loss F.cross_entropy. Set it to 0, or smooth in a loss of your own, such "
            "as nn.CrossEntropyLoss(label_smoothing=0.1)."
        )
    return partial(F.cross_entropy, label_smoothing=smoothing)
