"""Sharpness-aware minimisation: the gradient is computed at perturbed weights with a higher loss.

sam: at w + radius * g / |g|, with g the gradient of the same batch at w (Foret et al. 2021). asam: at
w + radius * T^2 g / |T g| with T = |w| + 0.01, which is invariant to the scale of layers (Kwon et al. 2021); T = 1 for
parameters not named `weight`, as in the authors' code. s2-sam: as sam, with g the gradient of the previous step, so
that a step needs one pass (Ji et al. 2024).
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from swamp.masks.dtensor import full_tensor
from swamp.training.batchnorm import frozen_statistics
from swamp.training.options import Sharpness

_SMALLEST = 0.01
"""The constant eta of the paper; without it zero weights would not be perturbed."""


def ascent(
    weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], sharpness: Sharpness
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """T g, which scales the perturbation by its norm, and T^2 g, the direction; both are zero where g is zero.

    Keys are names of parameters. Computed elementwise, so tensors may be stacked.
    """
    if sharpness != "asam":
        return gradient, gradient
    widths = {name: weights[name].detach().abs() + _SMALLEST for name in gradient if "weight" in name.split(".")[-1]}
    measured = {name: g * widths.get(name, 1) for name, g in gradient.items()}
    return measured, {name: g * widths.get(name, 1) for name, g in measured.items()}


@contextmanager
def perturbed(
    model: nn.Module, gradient: Mapping[str, Tensor], radius: float, sharpness: Sharpness = "sam"
) -> Generator[None]:
    """Inside the block the weights are perturbed along `gradient`; afterwards they are restored bit for bit.

    gradient: Parameter name -> masked gradient, so that pruned weights stay zero.
    """
    named = dict(model.named_parameters())
    measured, directions = ascent(named, gradient, sharpness)
    norm = full_tensor(nn.utils.get_total_norm(list(measured.values())))
    before = {name: named[name].detach().clone() for name in gradient}
    try:
        with torch.no_grad():
            for name, direction in directions.items():
                named[name].add_(direction * (radius / (norm + 1e-12)))
        yield
    finally:
        with torch.no_grad():
            for name, original in before.items():
                named[name].copy_(original)


@contextmanager
def second_gradient(model: nn.Module, radius: float, sharpness: Sharpness = "sam") -> Generator[None]:
    """Inside the block the weights are perturbed along the gradient in `grad`: compute the second gradient there.

    Running statistics of batch normalisation do not change in the block, and other buffers are restored: otherwise each
    batch would update them twice.
    """
    buffers = [
        (module._buffers, name, buffer, buffer.clone())  # pyright: ignore[reportPrivateUsage]
        for module in model.modules()
        for name, buffer in module._buffers.items()  # pyright: ignore[reportPrivateUsage]
        if buffer is not None
    ]
    try:
        with perturbed(model, gradient_of(model), radius, sharpness), frozen_statistics(model):
            yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in buffers:
                owner[name] = buffer.copy_(value)


def gradient_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> copy of its gradient."""
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
