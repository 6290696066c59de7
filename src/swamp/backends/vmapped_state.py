"""The tensors of N models in training, each with a leading dimension for the particle."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from swamp.backends.cuda_graph import CudaGraph
from swamp.backends.functional_optimizer import FunctionalOptimizer, is_elementwise, is_functional
from swamp.backends.sequential import ParticleJob
from swamp.backends.vmapped_step import Stack, Tensors, VmappedStep
from swamp.batches import Batch
from swamp.errors import Diverged, Interrupted
from swamp.model_copy import copied_model
from swamp.training import RunningMean, Seed
from swamp.training.average import State, copied
from swamp.training.loop import Fit
from swamp.training.module_extra_state import as_tensors, load_state
from swamp.training.nan_checks import require_finite, require_finite_memory, require_finite_weights
from swamp.training.optimizers import build_optimizer, rate_ratios, set_rate
from swamp.training.snapshot import LazySnapshot, Snapshot, epoch_mean, load_optimizer, optimizer_tensors
from swamp.training.stacked import gather_rows, stacked_batches


class VmappedState:
    """A stack of particles in training, all at the same step; see TrainState.

    Args:
        step: Computes one optimizer step of the stack.
        job: The model, the task and the request.
        members: (index, seed) of the particle at each place of the stack.
        snapshots: The snapshot at which the particle at each place starts; all are of the same step.
        compiled: Compile the step.
    """

    def __init__(
        self,
        step: VmappedStep,
        job: ParticleJob,
        members: Sequence[tuple[int, Seed]],
        snapshots: Sequence[Snapshot],
        *,
        compiled: bool,
    ) -> None:
        self.arithmetic, self.job, self.members = step, job, members
        self.seeds = [seed for _, seed in members]
        self.dropout_seeds = [seed.at("noise").number() for seed in self.seeds]
        self.scratch = copied_model(job.model)
        self.weights, self.buffers = self._stacked([snapshot.weights for snapshot in snapshots])
        weights = self.weights
        masks = {n: job.request.mask[m].to(weights[n]) for m in job.request.mask if (n := f"model.{m}") in weights}
        self.previous_gradients = self._previous_gradients([snapshot.gradient for snapshot in snapshots])
        self.anchors = self._anchors([snapshot.anchor for snapshot in snapshots])
        self.penalty = torch.zeros((), dtype=torch.float64, device=step.device)
        self.stack = Stack(masks, self.anchors, self.penalty, self.weights, self.buffers, self.previous_gradients)
        self.per_epoch = job.task.train.steps(job.request.training.batch_size)
        # The optimizers' parameters: the stacked weights themselves, or each particle's slices of them.
        self.one_optimizer, self.parameters = True, [[torch.nn.Parameter(weight) for weight in weights.values()]]
        self.optimizers = self._optimizers([snapshot.optimizer for snapshot in snapshots])
        seen = [snapshot.running_loss for snapshot in snapshots]
        self.running_loss = torch.tensor(seen, dtype=torch.float64, device=step.device)
        # On a GPU the fused step is captured and replayed, compiled or not.
        on_gpu = step.device.type == "cuda"
        fused = (compiled or on_gpu) and self.one_optimizer and is_functional(self.optimizers[0])
        used = [
            parameter for parameter, name in zip(self.parameters[0], weights, strict=True) if name not in step.unused
        ]
        self.functional = FunctionalOptimizer(self.optimizers[0], used) if fused else None
        self.fused_step = self._fused_step(compiled, on_gpu) if self.functional else None
        like = as_tensors(self.scratch.state_dict())
        decay = job.request.training.decay
        self.means = [RunningMean(s.mean, s.averaged, like=like, decay=decay) for s in snapshots]
        self.losses = [list(snapshot.losses) for snapshot in snapshots]
        self.losses_seen = snapshots[0].losses_seen
        self.taken, self.rate = snapshots[0].step, math.nan
        """Steps taken."""
        self.inactive: set[int] = set()
        """Places that are computed, as one step updates all, but no longer reported: diverged or finished before."""

    @property
    def active_places(self) -> list[int]:
        """Places of the particles that train and have not diverged."""
        return [place for place in range(len(self.members)) if place not in self.inactive]

    @property
    def active(self) -> bool:
        """See TrainState.active."""
        return len(self.inactive) < len(self.members)

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See TrainState.batches: (particle, example, ...)."""
        size = self.job.request.training.batch_size
        return stacked_batches(self.job.task.train, size, self.seeds, epoch, first, self.arithmetic.device)

    def step(self, step: int, rate: float, batch: Batch) -> None:
        """See TrainState.step; all particles are updated at once."""
        for optimizer in self.optimizers:
            set_rate(optimizer, rate, self.rate_ratios)
        if self.anchors:
            self.penalty.fill_(self.job.request.training.penalty_at(step, self.per_epoch))
        inputs, targets = batch
        dropout = self.arithmetic.dropout_masks(inputs, targets, [seed + step for seed in self.dropout_seeds])
        if self.functional is not None and self.fused_step is not None:
            if self.arithmetic.device.type == "cuda":
                inputs = gather_rows(inputs)  # a CUDA graph copies its arguments
            self.fused_step(self.functional.next_numbers(), inputs, targets, dropout)
        else:
            gradients, losses = self.arithmetic.gradients(self.stack, inputs, targets, dropout)
            self._update(gradients)
            self.running_loss += losses
        self.losses_seen += 1
        self.taken, self.rate = step + 1, rate

    def end_epoch(self, step: int) -> None:
        """See TrainState.end_epoch."""
        training = self.job.request.training
        sums = self.running_loss.cpu()
        for place in self.active_places:
            loss = float(sums[place]) / self.losses_seen
            self.losses[place].append(loss)
            try:
                require_finite(loss, step, training, self.per_epoch, next(iter(self.weights.values())))
            except Diverged as error:
                self.job.report_divergence(self.members[place][0], error)
                self.inactive.add(place)
        self.running_loss.zero_()
        self.losses_seen = 0

    def sample(self) -> None:
        """See TrainState.sample."""
        for place in self.active_places:
            self.means[place].add(self.state_dict(place))

    def report(self, step: int, last: int) -> None:
        """See TrainState.report. If one particle is told to stop, the others are still asked: each saves itself."""
        stopped: Interrupted | None = None
        for place in self.active_places:
            try:
                lazy = LazySnapshot(partial(self.snapshot, place), partial(self.present_loss, place), self.rate)
                self.job.request.progress.on_step(self.members[place][0], step, last, lazy)
            except Interrupted as error:
                stopped = error
        if stopped is not None:
            raise stopped

    def present_loss(self, place: int) -> float:
        """Mean loss of one particle in the present epoch."""
        return epoch_mean(self.losses[place], self.running_loss[place], self.losses_seen)

    def state_dict(self, place: int) -> State:
        """The state dict of one particle, in a scratch model that the next call overwrites."""
        with torch.no_grad():
            own = dict([*self.scratch.named_parameters(), *self.scratch.named_buffers()])
            values = [self._tensor(name)[place] for name in own]
            torch._foreach_copy_([*own.values()], values)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return as_tensors(self.scratch.state_dict())

    def snapshot(self, place: int) -> Snapshot:
        """One particle at the present step."""
        return Snapshot(
            self.taken,
            copied(self.state_dict(place)),
            self._optimizer_state(place),
            self.means[place].partial(),
            self.means[place].count,
            tuple(self.losses[place]),
            float(self.running_loss[place]),
            self.losses_seen,
            {name.removeprefix("model."): kept[place].clone() for name, kept in self.previous_gradients.items()},
            {name.removeprefix("model."): kept[place].clone() for name, kept in self.anchors.items()},
        )

    def fitted(self, place: int) -> Fit:
        """The result of one particle's training. Raises Diverged where a weight is not finite."""
        state = copied(self.state_dict(place))
        weights = dict(self.scratch.named_parameters())
        require_finite_weights(weights, self.taken, self.job.request.training)
        names = [name for name, parameter in weights.items() if parameter.requires_grad]
        require_finite_memory(self._optimizer_state(place), names, self.taken)
        mean = self.means[place]
        return Fit(
            mean.mean() if mean.count else state,
            mean.count,
            self.taken - self.job.request.first,
            tuple(self.losses[place]),
        )

    def _tensor(self, name: str) -> Tensor:
        found = self.weights.get(f"model.{name}")
        return self.buffers[f"model.{name}"] if found is None else found

    def _stacked(self, states: Sequence[State]) -> tuple[Tensors, Tensors]:
        """Trainable weights, and everything else in the models, with a leading dimension for the particle."""
        columns: dict[str, list[Tensor]] = {}
        for state in states:
            load_state(self.scratch, state)
            for name, tensor in [*self.scratch.named_parameters(), *self.scratch.named_buffers()]:
                columns.setdefault(f"model.{name}", []).append(tensor.detach().clone())
        stacked = {name: torch.stack(column) for name, column in columns.items()}
        trained = {f"model.{name}" for name, p in self.scratch.named_parameters() if p.requires_grad}
        weights = {name: tensor for name, tensor in stacked.items() if name in trained}
        return weights, {name: tensor for name, tensor in stacked.items() if name not in trained}

    def _previous_gradients(self, gradients: Sequence[State]) -> Tensors:
        """The gradients of the previous step, where s2-sam needs them; zeros before the first step."""
        needed = self.job.request.training.uses_previous_gradient
        unused = self.arithmetic.unused
        found = {n: torch.zeros_like(w) for n, w in self.weights.items() if n not in unused} if needed else {}
        for place, gradient in enumerate(gradients):
            for name, value in gradient.items():
                found[f"model.{name}"][place].copy_(value)
        return found

    def _anchors(self, anchors: Sequence[State]) -> Tensors:
        return {
            f"model.{name}": torch.stack([own[name].to(self.weights[f"model.{name}"]) for own in anchors])
            for name in anchors[0]
        }

    def _optimizers(self, states: Sequence[State]) -> list[Optimizer]:
        """One optimizer for the stack if it is elementwise, else one for each particle's slices."""
        job = self.job
        build = job.optimizer or partial(build_optimizer, training=job.request.training)
        if job.optimizer is None:
            optimizer = build(self.parameters[0])
            if is_elementwise(optimizer):
                self.rate_ratios = rate_ratios(optimizer)
                load_optimizer(optimizer, self._stacked_optimizer_state(states))
                return [optimizer]
        # A user's factory may group weights by their shapes, and must see the shapes of one model.
        self.one_optimizer = False
        self.parameters = [
            [torch.nn.Parameter(weight[place]) for weight in self.weights.values()]
            for place in range(len(self.members))
        ]
        separate = [build(parameters) for parameters in self.parameters]
        self.rate_ratios = rate_ratios(separate[0])
        for optimizer, state in zip(separate, states, strict=True):
            load_optimizer(optimizer, state)
        return separate

    def _fused_step(self, compiled: bool, on_gpu: bool) -> Callable[..., None]:
        assert self.functional is not None
        state, losses = self.functional.state, self.running_loss
        step = self.arithmetic.fused(self.functional.update, compiled=compiled)(self.stack, state, losses)
        changed = self.weights, self.buffers, self.previous_gradients, state, losses
        return CudaGraph(step, tree_leaves(changed)) if on_gpu else step

    def _stacked_optimizer_state(self, states: Sequence[State]) -> Tensors:
        """The optimizer state of the stack from the states of its particles; counts and options are equal in all."""
        # A snapshot read from a file is on the CPU, one taken in this session is on the device.
        device = self.arithmetic.device
        return {
            name: torch.stack([state[name].to(device) for state in states])
            if self._is_per_weight(name, first.shape)
            else first
            for name, first in states[0].items()
        }

    def _optimizer_state(self, place: int) -> Tensors:
        """The optimizer state of one particle."""
        if not self.one_optimizer:
            return optimizer_tensors(self.optimizers[place])
        return {
            name: value[place].clone() if self._is_per_weight(name, value.shape[1:]) else value
            for name, value in optimizer_tensors(self.optimizers[0]).items()
        }

    def _is_per_weight(self, name: str, shape: torch.Size) -> bool:
        owner, key = name.split("/", 1)
        if owner.startswith("group") or key.startswith("step"):
            return False
        return shape == [*self.weights.values()][int(owner)].shape[1:]

    def _update(self, gradients: Tensors) -> None:
        for place, (optimizer, parameters) in enumerate(zip(self.optimizers, self.parameters, strict=True)):
            for parameter, name in zip(parameters, self.weights, strict=True):
                gradient = gradients.get(name)
                parameter.grad = gradient if self.one_optimizer or gradient is None else gradient[place]
            optimizer.step()
