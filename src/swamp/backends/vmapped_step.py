"""One optimizer step of N models: every tensor has a leading dimension for the particle."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap  # pyright: ignore[reportUnknownVariableType]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from swamp.backends.compiled import Compiled
from swamp.backends.functional_optimizer import Update
from swamp.batches import rows_of
from swamp.model_copy import copied_model
from swamp.training import Seed, Task, Training
from swamp.training.dropout import DropoutMode, multipliers_from
from swamp.training.loop import smoothed
from swamp.training.rng import isolated
from swamp.training.sam import ascent
from swamp.training.stacked import gather_rows

Tensors = dict[str, Tensor]


class Stack(NamedTuple):
    """The tensors of N models, each with a leading dimension for the particle; a step changes the last three."""

    masks: Tensors
    anchors: Tensors
    """Weights to which the penalty draws; the gradient of penalty / 2 |weight - anchor|^2 is added."""
    penalty: Tensor
    weights: Tensors
    buffers: Tensors
    previous: Tensors
    """Gradients of the previous step, where s2-sam needs them."""


class Network(nn.Module):
    """The model as its task calls it, so that `functional_call` applies to a task's own forward pass."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.run = task.forward

    def forward(self, inputs: Any) -> tuple[Tensor, Tensors]:
        """Outputs of the task's forward pass, and the buffers after it, written in place or replaced."""
        outputs = self.run(self.model, inputs)
        return outputs, {name: buffer.detach() for name, buffer in self.named_buffers()}


class VmappedStep:
    """The arithmetic of one step of N models, without their tensors: compiled once, used for every cycle.

    Args:
        model: Architecture; it is copied.
        task: Loss and forward pass.
        training: SAM, clipping, precision, label smoothing.
        multi_stream: Compute each particle by itself, on a GPU in its own stream, instead of by torch.vmap.
    """

    def __init__(self, model: nn.Module, task: Task, training: Training, *, multi_stream: bool = False) -> None:
        self.multi_stream = multi_stream
        self.network = Network(copied_model(model), task).train()
        self.training = training
        self.device = next(model.parameters()).device
        self.loss = smoothed(task.loss, training.label_smoothing)
        self.shapes: dict[Any, list[tuple[tuple[int, ...], float, Tensor]]] = {}
        self.streams: list[torch.cuda.Stream] = []
        self._compiled: Compiled | None = None
        self.unused: frozenset[str] = frozenset()
        """Trainable weights on which the loss does not depend. As in torch, the optimizer leaves them alone: their
        gradient is None, not zero, so that neither weight decay nor momentum acts."""

    def find_unused(self, batches: Iterable[tuple[Any, Tensor]]) -> bool:
        """Find the unused weights by backward passes of an ordinary copy of the model, on stacked batches.

        Returns False if they may differ from batch to batch, as a stack has one set of them: they did, or (of streams,
        as vmap refuses it) Python read a number from a tensor.
        """
        network = copied_model(self.network)
        trainable = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
        found: list[frozenset[str]] = []
        with isolated(Seed(0).at("unused"), self.device), _ReadWatch() as watch:
            for inputs, targets in batches:
                network.zero_grad()
                self.loss(network(rows_of(gather_rows(inputs), 0))[0], targets[0]).backward()  # pyright: ignore[reportUnknownMemberType]
                found.append(frozenset(name for name, weight in trainable if weight.grad is None))
        self.unused = found[0]
        return len({*found}) == 1 and not (self.multi_stream and watch.read)

    def _masked_gradients(
        self, weights: Tensors, buffers: Tensors, masks: Tensors, inputs: Any, targets: Tensor, dropout: list[Tensor]
    ) -> tuple[Tensors, Tensor, Tensors]:
        """Masked gradients (particle, ...), losses (particle,) and the buffers after the forward pass.

        Without the gradients of unused weights.
        """
        derive = grad_and_value(self._loss_of, has_aux=True)
        batched = self._per_particle if self.multi_stream else vmap
        gradients, (losses, after) = batched(derive)(weights, buffers, inputs, targets, dropout)
        used = {name: gradient for name, gradient in gradients.items() if name not in self.unused}
        return {n: g * masks[n] if n in masks else g for n, g in used.items()}, losses, after

    def gradients(self, stack: Stack, inputs: Any, targets: Tensor, dropout: list[Tensor]) -> tuple[Tensors, Tensor]:
        """Gradients (particle, ...) for the optimizer, after SAM, clipping and penalty, and losses (particle,).

        Buffers and previous gradients of the stack are overwritten with the new ones.
        """
        masks, anchors, penalty, weights, buffers, previous = stack
        inputs = gather_rows(inputs)
        there = self._perturbed(weights, previous) if self.training.uses_previous_gradient else weights
        gradients, losses, after = self._masked_gradients(there, buffers, masks, inputs, targets, dropout)
        for name, value in after.items():
            buffers[name].copy_(value)
        for name, kept in previous.items():
            kept.copy_(gradients[name])
        if self.training.passes > 1:
            there = self._perturbed(weights, gradients)
            # The second pass must not update the buffers: they would count every batch twice.
            scratch = {name: value.clone() for name, value in buffers.items()}
            gradients, _, _ = self._masked_gradients(there, scratch, masks, inputs, targets, dropout)
        if self.training.clip:
            share = (self.training.clip / (_norms(gradients) + 1e-6)).clamp(max=1.0)
            gradients = {name: value * _each(share, value) for name, value in gradients.items()}
        pulls = {n: penalty * (weights[n] - anchor) for n, anchor in anchors.items() if n in gradients}
        return {n: value + pulls[n] if n in pulls else value for n, value in gradients.items()}, losses

    def _perturbed(self, weights: Tensors, gradients: Tensors) -> Tensors:
        measured, directions = ascent(weights, gradients, self.training.sharpness)
        share = self.training.sam / (_norms(measured) + 1e-12)
        moved = {name: weights[name] + change * _each(share, change) for name, change in directions.items()}
        return {**weights, **moved}

    def _per_particle(self, derive: Callable[..., Any]) -> Callable[..., Any]:
        """Like vmap, but compute each particle separately; on a GPU concurrently, each in its own stream."""

        def all_of(weights: Tensors, buffers: Tensors, inputs: Any, targets: Tensor, dropout: list[Tensor]) -> Any:
            count = len(targets)
            on_gpu = self.device.type == "cuda"
            while on_gpu and len(self.streams) < count:
                self.streams.append(torch.cuda.Stream(self.device))
            results: list[Any] = []
            for n in range(count):
                stream = self.streams[n] if on_gpu else None
                if stream is not None:
                    stream.wait_stream(torch.cuda.current_stream(self.device))
                with torch.cuda.stream(stream):
                    own = {k: v[n] for k, v in weights.items()}, {k: v[n] for k, v in buffers.items()}
                    results.append(derive(*own, rows_of(inputs, n), targets[n], [part[n] for part in dropout]))
            for stream in self.streams[:count]:
                torch.cuda.current_stream(self.device).wait_stream(stream)
            return tree_map(_together, *results)

        return all_of

    def _loss_of(
        self, weights: Tensors, buffers: Tensors, inputs: Any, targets: Tensor, dropout: list[Tensor]
    ) -> tuple[Tensor, Tensors]:
        bfloat16 = self.training.precision == "bfloat16"
        # No cache of casts: a CUDA graph would replay steps with casts of old weights.
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16, cache_enabled=False):
            given = iter(dropout)
            with DropoutMode(lambda shape, kept, like: next(given)) if dropout else nullcontext():
                outputs, after = functional_call(self.network, (weights, buffers), (inputs,))
            loss = self.loss(outputs, targets)
        return loss, after

    def dropout_masks(self, inputs: Any, targets: Tensor, seeds: Sequence[int]) -> list[Tensor]:
        """Dropout masks of one step: for each call of dropout, the masks of all particles. seeds: one per particle."""
        key = targets.shape
        if key not in self.shapes:
            self.shapes[key] = self._asked(inputs)
        asked = self.shapes[key]
        if not asked:
            return []
        found: list[list[Tensor]] = []
        generator = torch.Generator(self.device)
        for seed in seeds:
            draw = multipliers_from(generator.manual_seed(seed))
            found.append([draw(*one) for one in asked])
        return [torch.stack(of_all) for of_all in zip(*found, strict=True)]

    def _asked(self, inputs: Any) -> list[tuple[tuple[int, ...], float, Tensor]]:
        """Record the dropout masks that one forward pass of one particle needs, as arguments of `Draw`."""
        asked: list[tuple[tuple[int, ...], float, Tensor]] = []

        def record(shape: tuple[int, ...], kept: float, like: Tensor) -> Tensor:
            asked.append((shape, kept, like.new_empty(0)))
            return torch.ones(shape, dtype=like.dtype, device=like.device)

        first = rows_of(gather_rows(inputs), 0)
        bfloat16 = self.training.precision == "bfloat16"
        with (
            torch.no_grad(),
            DropoutMode(record),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16),
        ):
            copied_model(self.network)(first)
        return asked

    def fused(self, update: Update, *, compiled: bool) -> Callable[..., Callable[..., None]]:
        """A function (stack, optimizer state, sum of losses) -> (function of a batch that takes one step).

        The step includes the optimizer.

        compiled: compile at the first batch, with the first `update` that was given.
        """

        def body(stack: Stack, state: Any, running_loss: Tensor, numbers: Tensor, *batch: Any) -> None:
            gradients, losses = self.gradients(stack, *batch)
            running_loss.add_(losses)
            update([stack.weights[name] for name in gradients], [*gradients.values()], state, numbers)

        if not compiled:
            return lambda *own: partial(body, *own)
        if self._compiled is None:
            self._compiled = Compiled(body)
        return self._compiled.bound


class _ReadWatch(TorchDispatchMode):
    """Notices that Python reads a number from a tensor, and may decide by it which layers are called."""

    read = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read |= func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def _norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """The norm of each particle's whole gradient (particle,)."""
    return torch.stack([_squares(g).reshape(len(g), -1).sum(1) for g in gradients.values()]).sum(0).sqrt()


def _squares(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) ** 2 if tensor.is_complex() else tensor**2


def _each(factors: Tensor, like: Tensor) -> Tensor:
    """One factor a particle, shaped to multiply a stacked tensor."""
    # Real, also for a complex tensor.
    return factors.to(like.dtype.to_real()).view(-1, *(1 for _ in like.shape[1:]))


def _together(*parts: Tensor) -> Tensor:
    return torch.stack(parts)
