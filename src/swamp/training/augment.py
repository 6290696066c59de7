"""Augmentation of whole batches in memory: one vectorised gather a batch, never a loop over images."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(batch of inputs, generator) -> augmented batch; all randomness comes from the generator."""


def crop_flip(padding: int = 4, flip: bool = True) -> Augment:
    """Random crop after zero padding by `padding` pixels, and random horizontal flip, of images (N, C, H, W)."""

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        count, channels, height, width = images.shape
        device = images.device
        padded = F.pad(images, [padding] * 4)
        wide = width + 2 * padding
        shifts = torch.randint(0, 2 * padding + 1, (2, count), generator=generator, device=generator.device).to(device)
        columns = torch.arange(width, device=device).expand(count, width)
        if flip:
            flipped = torch.randint(0, 2, (count, 1), generator=generator, device=generator.device).to(device).bool()
            columns = torch.where(flipped, width - 1 - columns, columns)
        columns = columns + shifts[1, :, None]
        rows = torch.arange(height, device=device) + shifts[0, :, None]
        offsets = (rows[:, :, None] * wide + columns[:, None, :]).view(count, 1, height * width)
        flat = padded.view(count, channels, -1)
        return flat.gather(2, offsets.expand(count, channels, height * width)).view(images.shape)

    return augment


def shift_scale_noise(shift: int = 4, scale: float = 0.2, noise: float = 0.15) -> Augment:
    """Augmentation of signals (N, L): circular shift up to `shift` samples, amplitude 1 +- `scale`, white noise.

    These are the transformations of which MNIST-1D's own generator makes its examples.
    """

    def augment(signals: Tensor, generator: torch.Generator) -> Tensor:
        count, length = signals.shape
        device = signals.device
        starts = torch.randint(-shift, shift + 1, (count, 1), generator=generator, device=generator.device).to(device)
        index = (torch.arange(length, device=device) + starts) % length
        shifted = signals.gather(1, index)
        factor = 1 + scale * (2 * torch.rand((count, 1), generator=generator, device=generator.device) - 1)
        white = torch.randn((count, length), generator=generator, device=generator.device)
        return shifted * factor.to(device, signals.dtype) + noise * white.to(device, signals.dtype)

    return augment
