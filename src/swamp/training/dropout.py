"""Dropout with explicit random numbers: from a separate generator, or with precomputed masks for stacked models."""

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from swamp.batches import batch_to
from swamp.model_copy import copied_model
from swamp.training.rng import Seed, draws_global, reseed_global
from swamp.training.task import Task

Draw = Callable[[tuple[int, ...], float, Tensor], Tensor]
"""(shape, keep probability, tensor with the dtype and device to use) -> multiplier: 0 or 1 / keep probability."""


class DropoutMode(TorchFunctionMode):
    """Inside the block dropout takes its masks from `draw` instead of torch's global generator.

    Threads would share the global generator, and stacked models need one mask each. Covers dropout and attention of
    torch, and layers built of them; alpha dropout is not covered.
    """

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw = draw
        self.used = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        replaced = _REPLACED.get(func)
        if replaced is None:
            return func(*args, **(kwargs or {}))
        return replaced(self, *args, **(kwargs or {}))

    def multiplier(self, inputs: Tensor, p: float, shape: tuple[int, ...] | None = None) -> Tensor:
        """The dropout mask of `inputs` with drop probability `p`, scaled by 1 / (1 - p)."""
        self.used = True
        return self.draw(tuple(inputs.shape) if shape is None else shape, 1 - p, inputs)


def multipliers_from(generator: torch.Generator, rows: slice | None = None, total: int = 0) -> Draw:
    """Dropout masks from `generator`: on CPU the numbers that torch draws from its global generator in the same state.

    rows, total: if the inputs are the examples `rows` of a batch of `total` examples, these rows of the mask of the
    whole batch are used.
    """

    def draw(shape: tuple[int, ...], kept: float, like: Tensor) -> Tensor:
        of_batch = rows is not None and bool(shape) and shape[0] == rows.stop - rows.start
        whole = (total, *shape[1:]) if of_batch else shape
        # Contiguous, so that the mask does not depend on the memory format of the activations.
        mask = torch.empty(whole, dtype=like.dtype, device=like.device).bernoulli_(kept, generator=generator)
        mask = mask[rows] if of_batch else mask
        return mask.div_(kept) if kept else mask

    return draw


class DropoutStream:
    """Random numbers in the forward passes of one training: a pure function of its seed and the step.

    Dropout uses a separate generator. Other random functions use torch's global generator, which is seeded at each step
    if the training is `exclusive`, and for each part of a batch that is computed in parts.
    """

    def __init__(self, model: nn.Module, seed: int, device: torch.device, exclusive: bool) -> None:
        self.seed, self.device, self.exclusive = seed, device, exclusive
        self.generator = torch.Generator(device)
        # The first step detects functional dropout; without dropout, later steps skip the mode.
        self.has_dropout = has_dropout_layer(model)
        self.is_first = True

    @contextmanager
    def at(self, step: int, rows: slice | None, total: int) -> Generator[None]:
        """Context for the forward pass of one step, on `rows` (None: all) of a batch of `total` examples."""
        # Equal noise in all parts of a batch would raise the variance of its gradient.
        self._reseed(step, 0 if rows is None else rows.start)
        if not (self.is_first or self.has_dropout):
            yield
            return
        self.generator.manual_seed(self.seed + step)
        with DropoutMode(multipliers_from(self.generator, rows, total)) as mode:
            yield
        self.is_first, self.has_dropout = False, self.has_dropout or mode.used

    def join(self, step: int) -> None:
        """Give all ranks of a data-parallel step equal random numbers for what follows their forward passes."""
        self._reseed(step, 0)

    def _reseed(self, step: int, first_row: int) -> None:
        if self.exclusive:
            number = Seed(self.seed).at(step, first_row).number() if first_row else self.seed + step
            reseed_global(number, self.device)


def has_dropout_layer(model: nn.Module) -> bool:
    """Whether a module of `model` is a dropout layer."""
    return any("Dropout" in type(module).__name__ for module in model.modules())


def draws_random(model: nn.Module, task: Task, batch_size: int, *, training: bool = True) -> bool:
    """Whether a forward pass in train or eval mode draws random numbers: dropout masks or others."""
    fresh = copied_model(model).train(training)
    device = next(fresh.parameters()).device
    inputs, _ = batch_to(next(iter(task.train.in_order(min(batch_size, 8)))), device)
    with torch.no_grad(), DropoutMode(multipliers_from(torch.Generator(device))) as mode:
        others = draws_global(partial(task.forward, fresh, inputs), device)
    return mode.used or others


def _dropout(mode: DropoutMode, inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or not p:
        return inputs
    multiplier = mode.multiplier(inputs, p)
    return inputs.mul_(multiplier) if inplace else inputs * multiplier


def _channels(spatial: int) -> Callable[..., Tensor]:
    """Dropout of whole channels. Inputs without a batch dimension have the channels first."""

    def dropout(
        mode: DropoutMode, inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or not p:
            return inputs
        leading = 1 if spatial != 2 and inputs.dim() == spatial + 1 else 2
        shape = (*inputs.shape[:leading], *(1 for _ in inputs.shape[leading:]))
        multiplier = mode.multiplier(inputs, p, shape)
        return inputs.mul_(multiplier) if inplace else inputs * multiplier

    return dropout


def _attention(
    mode: DropoutMode,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if not dropout_p:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        repeats = query.size(-3) // key.size(-3)
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    weights = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        later = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        weights = weights.masked_fill(later, -math.inf)
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        weights = weights.masked_fill(~attn_mask, -math.inf) if is_bool else weights + attn_mask
    weights = weights.softmax(-1)
    return (weights * mode.multiplier(weights, dropout_p)) @ value


def _never(*tensors: Any) -> bool:
    del tensors
    return False


def with_inner_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a composite function of torch.nn.functional so that a TorchFunctionMode also intercepts its inner calls."""
    # torch checks has_torch_function at the start, then disables the mode for the body. This copy skips the check.
    original = cast(FunctionType, function)
    scope: dict[str, Any] = {**original.__globals__, "has_torch_function": _never}
    body = FunctionType(original.__code__, scope, original.__name__, original.__defaults__, original.__closure__)
    body.__kwdefaults__ = original.__kwdefaults__

    def run(mode: TorchFunctionMode, *args: Any, **kwargs: Any) -> Any:
        with mode:
            return body(*args, **kwargs)

    return run


_REPLACED: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    F.dropout1d: _channels(1),
    F.dropout2d: _channels(2),
    F.dropout3d: _channels(3),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: with_inner_calls(F.multi_head_attention_forward),
}
