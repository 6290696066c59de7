"""The one training loop."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from swamp.errors import SwampError
from swamp.masks import Mask, full_tensor, gathered_copy, hold, hold_gradients, preserves_zeros, shard_like
from swamp.training.average import RunningMean, copied
from swamp.training.batchnorm import norm_layers
from swamp.training.data import Batch, batch_to, rows_of
from swamp.training.finite import require_finite, require_finite_memory, require_finite_weights
from swamp.training.layout import arrange, arranged
from swamp.training.narrow import Narrow
from swamp.training.noise import Randomness
from swamp.training.optimizers import OptimizerFactory, build_optimizer
from swamp.training.options import Training
from swamp.training.order import Seed, isolated
from swamp.training.sam import gradient_of, perturbed, second_gradient
from swamp.training.shard import Shard
from swamp.training.snapshot import Snapshot, load_optimizer, optimizer_tensors
from swamp.training.task import Loss, Task


@dataclass(frozen=True, eq=False)
class Fit:
    """The outcome of one training."""

    weights: dict[str, Tensor]
    """The mean or moving average where weights were averaged, else the last iterate."""
    averaged: int
    """Samples in it (0: none was kept)."""
    steps: int
    """Optimizer steps taken."""
    losses: tuple[float, ...]
    """Mean training loss of each epoch."""


class Watch(Protocol):
    """Told after every step. May save `snapshot()`, show progress, or raise Interrupted to stop."""

    def __call__(self, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """`step` of `total` steps are taken."""
        ...


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
    watch: Watch | None = None,
    alone: bool = True,
    shard: Shard | None = None,
) -> Fit:
    """Train `model` in place from step `first` up to `last` (default: the whole training) on the support of `mask`.

    The batch of every step is a pure function of `seed` and the step. alone: the global generators are seeded for
    this training and restored after it; without, nothing may draw from them but dropout, which has its own noise.
    shard: the rows of this process where several processes train one model. Raises Diverged when the loss or a weight
    is not finite; the loss is read back once an epoch.
    """
    if resume is not None:
        model.load_state_dict(dict(resume.weights))
    run = _Run(model, task, training, seed, optimizer, alone, shard)
    last = run.total if last is None else last
    step = first if resume is None else run.restore(resume)
    with isolated(seed, run.device) if alone else nullcontext(), run.held(mask):
        model.train()
        while step < last:
            epoch, within = divmod(step, run.per_epoch)
            end = min((epoch + 1) * run.per_epoch, last)
            for batch in islice(task.train.shuffled(training.batch_size, seed, epoch, within), end - step):
                run.step(step, batch_to(batch, run.device))
                step += 1
                if step == end:
                    run.end_epoch(step)
                if training.samples_at(step, run.per_epoch):
                    run.mean.add(model.state_dict())
                if watch is not None:
                    watch(step, last, partial(run.snapshot, step))
            if step < end:
                given = step - epoch * run.per_epoch
                raise SwampError(f"the training data promised {run.per_epoch} batches an epoch and gave {given}.")
        # Before the mask is looked at: to it, a NaN among the pruned weights would be a mask that was not kept.
        run.require_finite(step)
    averaged = run.mean.count
    weights = run.mean.mean() if averaged else copied(model.state_dict())
    # However it was fastest to train in, in memory and over processes: what is averaged, hashed and stored has the
    # usual order, and is whole.
    weights = {name: full_tensor(value).contiguous() for name, value in weights.items()}
    return Fit(weights, averaged, step - first, tuple(run.losses))


class _Run:
    """What changes while one model is trained."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        training: Training,
        seed: Seed,
        optimizer: OptimizerFactory | None,
        alone: bool,
        shard: Shard | None,
    ) -> None:
        self.model, self.task, self.training, self.shard = model, task, training, shard
        self.device = next(model.parameters()).device
        spread = shard is not None and shard.shard_parameters(model)
        narrow = training.precision == "bfloat16"
        self.layout = torch.contiguous_format if spread else arrange(model, narrow=narrow)
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer: Optimizer = (optimizer or partial(build_optimizer, training=training))(self.trainable)
        self.per_epoch = task.train.steps(training.batch_size)
        self.total = training.epochs * self.per_epoch
        self.loss = smoothed(task.loss, training.label_smoothing)
        self.random = Randomness(model, seed.at("noise").number(), self.device, alone)
        self.narrow: Callable[[], AbstractContextManager[None]] = Narrow(self.device) if narrow else nullcontext
        self.mask_gradients: Callable[[], None] | None = None
        self.mean = RunningMean(decay=training.decay)
        self.gradient: dict[str, Tensor] = {}
        self.losses: list[float] = []
        self.running_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.losses_seen = 0

    @contextmanager
    def held(self, mask: Mask | None) -> Generator[None]:
        if mask is None:
            yield
        elif preserves_zeros(self.optimizer):
            with hold_gradients(self.model, mask, self.optimizer) as self.mask_gradients:
                yield
        else:
            # The gradients of an unknown optimizer are masked here too: the sum over processes comes after the hooks.
            with hold(self.model, mask, self.optimizer):
                yield

    def step(self, step: int, batch: Batch) -> None:
        rate = self.training.rate(step, self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.sharp(step, batch) if self.training.sam else self.backward(step, batch)
        if self.training.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        self.optimizer.step()
        self.running_loss += loss
        self.losses_seen += 1

    def sharp(self, step: int, batch: Batch) -> Tensor:
        """`backward` where the loss is worst nearby."""
        radius, sharpness = self.training.sam, self.training.sharpness
        if self.training.looks_back:
            with perturbed(self.model, self.gradient, radius):
                loss = self.backward(step, batch)
            self.gradient = gradient_of(self.model)
            return loss
        loss = self.backward(step, batch)
        with second_gradient(self.model, radius, sharpness):
            self.backward(step, batch)
        return loss

    def backward(self, step: int, batch: Batch) -> Tensor:
        """Leave the masked gradient of one batch in the model; the loss stays on the device."""
        # What optimizer.zero_grad does, without the profiler's record around it.
        for parameter in self.trainable:
            parameter.grad = None
        inputs, targets = batch
        found = torch.zeros((), device=self.device)
        for own in self.parts(len(targets)):
            found = found + self.part(step, inputs, targets, own)
        if self.shard is not None:
            self.shard.all_reduce([*(p.grad for p in self.trainable if p.grad is not None), found])
        if self.mask_gradients is not None:
            self.mask_gradients()
        return found

    def parts(self, examples: int) -> list[slice | None]:
        """The rows of a batch that are computed at once, one part after the other; None: all of it."""
        count = self.training.grad_accum_steps
        if self.shard is None and count == 1:
            return [None]
        rows = slice(0, examples) if self.shard is None else self.shard.rows(examples)
        size = rows.stop - rows.start
        # Ranks compute together, so that each must have as many parts as the others.
        if self.shard is not None and size < count:
            raise SwampError(f"a rank has {size} examples a step, too few to accumulate over {count} parts.")
        count = min(count, size)
        borders = [rows.start + size * number // count for number in range(count + 1)]
        return [slice(*pair) for pair in pairwise(borders)]

    def part(self, step: int, inputs: Any, targets: Tensor, own: slice | None) -> Tensor:
        """Add the gradient of these rows to the model's; their share of the loss."""
        examples, weight = len(targets), 1.0
        if own is not None:
            inputs, targets, weight = rows_of(inputs, own), targets[own], (own.stop - own.start) / examples
        inputs = arranged(inputs, self.layout)
        with self.shard.synchronised_batchnorm() if self.shard else nullcontext():
            with self.narrow(), self.random.at(step, own, examples):
                loss = self.loss(self.task.forward(self.model, inputs), targets)
            (loss if weight == 1 else loss * weight).backward()  # pyright: ignore[reportUnknownMemberType]
        return loss.detach() * weight

    def end_epoch(self, step: int) -> None:
        mean_loss = float(self.running_loss) / self.losses_seen
        self.losses.append(mean_loss)
        self.running_loss.zero_()
        self.losses_seen = 0
        require_finite(mean_loss, step, self.training, self.per_epoch, self.trainable[0])

    def require_finite(self, step: int) -> None:
        """Raise Diverged where a weight is not finite, or what the optimizer keeps of one."""
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
        # A loss sum in mid-epoch must come back to the last bit, so that the resumed record is the same.
        return Snapshot(
            step,
            {name: gathered_copy(value) for name, value in self.model.state_dict().items()},
            optimizer_tensors(self.optimizer),
            self.mean.partial(),
            self.mean.count,
            tuple(self.losses),
            float(self.running_loss),
            self.losses_seen,
            {name: gathered_copy(value) for name, value in self.gradient.items()},
        )

    def restore(self, snapshot: Snapshot) -> int:
        """Go on from `snapshot`, whose weights the model has."""
        load_optimizer(self.optimizer, snapshot.optimizer)
        # The mean is kept wider than the weights are; it must be cast to their types even if no sample is added.
        state = self.model.state_dict()
        kept = [(name, snapshot.mean[name], like) for name, like in state.items() if name in snapshot.mean]
        mean = {name: shard_like(tensor, like, tensor.dtype) for name, tensor, like in kept}
        self.mean = RunningMean(mean, snapshot.averaged, like=state, decay=self.training.decay)
        named, gradient = dict(self.model.named_parameters()), snapshot.gradient
        self.gradient = {n: shard_like(gradient[n], p, p.dtype) for n, p in named.items() if n in gradient}
        self.losses = list(snapshot.losses)
        self.running_loss.fill_(snapshot.running_loss)
        self.losses_seen = snapshot.losses_seen
        return snapshot.step


def reset_statistics(model: nn.Module) -> None:
    """Fresh batch-normalisation statistics, for a rewind that does not rewind them."""
    for layer in norm_layers(model):
        layer.reset_running_stats()


def smoothed(loss: Loss, smoothing: float) -> Loss:
    """The loss with label smoothing. Raises SwampError for one that has no such form."""
    if not smoothing:
        return loss
    if loss is not F.cross_entropy:
        raise SwampError("label smoothing is defined for the cross-entropy; set label_smoothing=0 for another loss.")
    return lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=smoothing)
