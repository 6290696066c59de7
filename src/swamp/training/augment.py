"""Augmentation of whole batches in memory: one vectorised gather a batch, never a loop over images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(batch of inputs, generator) -> augmented batch; all randomness comes from the generator."""


@runtime_checkable
class DrawThenApply(Protocol):
    """An Augment that draws first and computes afterwards, so that the batches of many models are computed at once."""

    def draw(self, inputs: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random numbers for inputs of this shape, each with the examples first, on the generator's device."""
        ...

    def apply(self, inputs: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """The augmented inputs; an example depends on its own numbers alone."""
        ...


def crop_flip(padding: int = 4, flip: bool = True) -> Augment:
    """Random crop after zero padding by `padding` pixels, and random horizontal flip, of images (N, C, H, W)."""
    return _CropFlip(padding, flip)


def shift_scale_noise(shift: int = 4, scale: float = 0.2, noise: float = 0.15) -> Augment:
    """Augmentation of signals (N, L): circular shift up to `shift` samples, amplitude 1 +- `scale`, white noise.

    These are the transformations of which MNIST-1D's own generator makes its examples.
    """
    return _ShiftScaleNoise(shift, scale, noise)


@dataclass(frozen=True)
class _CropFlip:
    padding: int
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.apply(images, self.draw(tuple(images.shape), generator))

    def draw(self, inputs: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        device, count = generator.device, inputs[0]
        shifts = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator, device=device).T
        if not self.flip:
            return (shifts,)
        return shifts, torch.randint(0, 2, (count, 1), generator=generator, device=device)

    def apply(self, inputs: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        count, channels, height, width = inputs.shape
        device = inputs.device
        shifts = drawn[0].to(device)
        padded = F.pad(inputs, [self.padding] * 4)
        wide = width + 2 * self.padding
        columns = torch.arange(width, device=device).expand(count, width)
        if self.flip:
            columns = torch.where(drawn[1].to(device).bool(), width - 1 - columns, columns)
        columns = columns + shifts[:, 1, None]
        rows = torch.arange(height, device=device) + shifts[:, 0, None]
        offsets = (rows[:, :, None] * wide + columns[:, None, :]).view(count, 1, height * width)
        flat = padded.view(count, channels, -1)
        return flat.gather(2, offsets.expand(count, channels, height * width)).view(inputs.shape)


@dataclass(frozen=True)
class _ShiftScaleNoise:
    shift: int
    scale: float
    noise: float

    def __call__(self, signals: Tensor, generator: torch.Generator) -> Tensor:
        return self.apply(signals, self.draw(tuple(signals.shape), generator))

    def draw(self, inputs: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        device, count = generator.device, inputs[0]
        starts = torch.randint(-self.shift, self.shift + 1, (count,), generator=generator, device=device)
        factor = torch.rand((count, 1), generator=generator, device=device)
        return starts, factor, torch.randn(inputs, generator=generator, device=device)

    def apply(self, inputs: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        starts, factor, white = (part.to(inputs.device) for part in drawn)
        length, device = inputs.shape[1], inputs.device
        # The few shifts there are as a table: dividing every index by the length takes several times as long.
        shifts = torch.arange(-self.shift, self.shift + 1, device=device)
        table = (torch.arange(length, device=device) + shifts[:, None]) % length
        shifted = inputs.gather(1, table.index_select(0, starts + self.shift))
        factor = 1 + self.scale * (2 * factor - 1)
        return shifted * factor.to(inputs.dtype) + self.noise * white.to(inputs.dtype)
