"""Sharpness-aware minimisation (Foret et al. 2021): the gradient is taken where the loss is worst nearby."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from swamp.sparsity import whole
from swamp.training.batchnorm import frozen_statistics


@contextmanager
def second_gradient(model: nn.Module, radius: float) -> Generator[None]:
    """Inside the block the weights stand at w + radius * g / |g|; on leaving they are bit for bit where they were.

    The first gradient g must be in the model, masked: the perturbation then stays on the mask's support. The block
    replaces it by the second gradient. Running statistics of batch normalisation do not move in the block, and other
    buffers come back as they were, or they would take every batch twice.
    """
    weights = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad.detach().clone() for p in weights if p.grad is not None]
    before = [p.detach().clone() for p in weights]
    norm = whole(nn.utils.get_total_norm(gradients))
    buffers = [
        (module._buffers, name, buffer, buffer.clone())  # pyright: ignore[reportPrivateUsage]
        for module in model.modules()
        for name, buffer in module._buffers.items()  # pyright: ignore[reportPrivateUsage]
        if buffer is not None
    ]
    try:
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.add_(gradient * (radius / (norm + 1e-12)))
        with frozen_statistics(model):
            yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, before, strict=True):
                weight.copy_(original)
            for place, name, buffer, value in buffers:
                place[name] = buffer.copy_(value)
