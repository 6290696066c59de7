"""The one place that enforces a mask while a model trains."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from swamp.masks.mask import Mask
from swamp.masks.spread import own, own_part, spread_like


@contextmanager
def hold(
    model: nn.Module, mask: Mask, optimizer: torch.optim.Optimizer, *, only_backward: bool = False
) -> Generator[None]:
    """Keep pruned weights, their gradients and their optimizer state at exactly zero inside the `with` block.

    Works with any loop and any torch optimizer: gradients are masked as they accumulate, so that a user's
    clipping sees the sparse norm; weights and the numbers kept for them (state tensors of a weight's shape) are
    masked on entry and after each step. Raises MaskError on entry if the mask does not fit the model, and on leaving
    if a pruned weight is not zero, which means that something other than `optimizer` wrote to it.
    only_backward: every gradient comes from a backward pass and nothing adds to it later; then optimizers that leave
    zeros alone (see `leaves_zeros`) need nothing after their steps, which is most of what holding costs.

        with swamp.hold(model, mask, optimizer):
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss(model(inputs), targets).backward()
                optimizer.step()
    """
    mask.apply_(model)
    parameters = dict(model.named_parameters())
    held = [(weight := parameters[name], _Support(own_part(alive, weight))) for name, alive in mask.items()]

    def after_step(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        _prune([*held, *_state_tensors(stepped, held)])

    handles: list[Any] = []
    try:
        for weight, support in held:
            if weight.requires_grad:
                handles.append(weight.register_post_accumulate_grad_hook(support.mask_gradient))  # pyright: ignore[reportUnknownMemberType]
                support.mask_gradient(weight)
        if not (only_backward and leaves_zeros(optimizer)):
            handles.append(optimizer.register_step_post_hook(after_step))
        # Momentum carried over a pruning event would push pruned weights away from zero at the first step.
        _prune(_state_tensors(optimizer, held))
        yield
    finally:
        for handle in handles:
            handle.remove()
    _require_held(model, mask)


@contextmanager
def hold_gradients(model: nn.Module, mask: Mask, optimizer: torch.optim.Optimizer) -> Generator[Callable[[], None]]:
    """`hold` for a loop that calls what the block is given after each backward pass: one multiplication a step.

    Fits optimizers that leave a weight alone whose gradient, value and state are zero: see `leaves_zeros`. A small
    network's step is 1.03 times a dense one, with the hooks that any loop and any optimizer need 1.15 times.
    """
    mask.apply_(model)
    parameters = dict(model.named_parameters())
    held = [(parameters[name], alive) for name, alive in mask.items() if parameters[name].requires_grad]
    supports = [spread_like(alive, weight, weight.dtype) for weight, alive in held]
    _prune(_state_tensors(optimizer, [(weight, _Support(own_part(alive, weight))) for weight, alive in held]))

    def mask_gradients() -> None:
        gradients = [weight.grad for weight, _ in held if weight.grad is not None]
        if gradients and len(gradients) == len(supports):
            torch._foreach_mul_(gradients, supports)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        else:
            for (weight, _), support in zip(held, supports, strict=True):
                if weight.grad is not None:
                    weight.grad.mul_(support)

    yield mask_gradients
    _require_held(model, mask)


def leaves_zeros(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a weight stays at exactly zero whose gradient, value and state are zero."""
    adam = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
    return type(optimizer) is torch.optim.SGD or (adam and all(group["eps"] > 0 for group in optimizer.param_groups))


def _require_held(model: nn.Module, mask: Mask) -> None:
    # The parameters of now: one that was replaced meanwhile had nothing that held it.
    mask.check(model)
    mask.require_zeros(dict(model.named_parameters()))


_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.complex64: torch.int64,
}


class _Support:
    """Ones on the living weights of one tensor, in whatever type, device and layout they are asked for.

    Of a tensor that is spread over processes: of this one's part.
    """

    def __init__(self, alive: Tensor) -> None:
        self.alive = alive
        self.cast: dict[tuple[torch.dtype, torch.device, tuple[int, ...]], Tensor] = {}

    def like(self, tensor: Tensor) -> Tensor:
        key = (tensor.dtype, tensor.device, tensor.stride())
        found = self.cast.get(key)
        if found is None:
            # The layout too: a product of unlike layouts is many times slower.
            found = self.cast[key] = torch.empty_like(tensor).copy_(self.alive)
        return found

    def mask_gradient(self, weight: Tensor) -> None:
        if weight.grad is None:
            return
        if weight.grad.is_sparse:
            weight.grad.mul_(self.alive.to(weight.grad.device, weight.grad.dtype))
        else:
            bits = _bits(weight.grad)
            bits.mul_(self.like(bits))


def _state_tensors(
    optimizer: torch.optim.Optimizer, held: list[tuple[nn.Parameter, _Support]]
) -> list[tuple[Tensor, _Support]]:
    # Numbers only: in a quantised state the code 0 does not stand for zero.
    return [
        (value, support)
        for weight, support in held
        for value in optimizer.state.get(weight, {}).values()
        if isinstance(value, Tensor)
        and value.shape == weight.shape
        and (value.is_floating_point() or value.is_complex())
    ]


def _prune(tensors: Sequence[tuple[Tensor, _Support]]) -> None:
    bits = [_bits(tensor) for tensor, _ in tensors]
    ones = [support.like(own) for own, (_, support) in zip(bits, tensors, strict=True)]
    if bits:
        torch._foreach_mul_(bits, ones)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _bits(tensor: Tensor) -> Tensor:
    # Multiplied as integers by 0 or 1. A floating-point product would leave -0 where a weight was negative and NaN
    # where it was not finite, and masked_fill_ takes six times as long.
    return own(tensor).data.view(_BITS.get(tensor.dtype, tensor.dtype))
