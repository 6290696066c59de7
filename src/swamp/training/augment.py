"""Augmentation of whole batches in memory: vectorised, without a loop over examples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(inputs of a batch, generator) -> augmented inputs; all random numbers are drawn from the generator."""


@runtime_checkable
class DrawThenApply(Protocol):
    """An Augment with separate draw and apply, so that the batches of several models are augmented in one call."""

    def draw(self, inputs: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random numbers for inputs of this shape, each (examples, ...), on the device of the generator."""
        ...

    def apply(self, inputs: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """The augmented inputs; each example depends on its own random numbers only."""
        ...


def crop_flip(padding: int = 4, flip: bool = True) -> Augment:
    """Augmentation of images (N, C, H, W): zero padding, random crop to the original size, random horizontal flip.

    Args:
        padding: Pixels of padding on each side.
        flip: Flip half of the images.

    Examples:
        >>> import torch
        >>> crop_flip(padding=2)(torch.ones(8, 3, 6, 6), torch.Generator()).shape
        torch.Size([8, 3, 6, 6])
    """
    return _CropFlip(padding, flip)


def contrast_cutout(contrast: float = 0.5, cutout: float = 0.5) -> Augment:
    """Strong augmentation of uint8 images (N, C, H, W): contrast, brightness and cutout (DeVries and Taylor 2017).

    Args:
        contrast: Pixels are multiplied by a number in 1 +- `contrast`, then moved by up to `contrast` / 2 of 255.
        cutout: Side of the square that is set to the image's mean, as a fraction of the shorter side.

    Examples:
        >>> import torch
        >>> images = torch.full((2, 1, 8, 8), 100, dtype=torch.uint8)
        >>> int((contrast_cutout(contrast=0, cutout=0.5)(images, torch.Generator()) != 100).sum())
        0
    """
    return _ContrastCutout(contrast, cutout)


def shift_scale_noise(shift: int = 4, scale: float = 0.2, noise: float = 0.15) -> Augment:
    """Augmentation of signals (N, L), with the transformations of the MNIST-1D generator (Greydanus 2020).

    Args:
        shift: Largest circular shift, in samples.
        scale: The amplitude is multiplied by a number in 1 +- `scale`.
        noise: Standard deviation of the white noise that is added.

    Examples:
        >>> import torch
        >>> shift_scale_noise(shift=0, scale=0, noise=0)(torch.ones(1, 3), torch.Generator())
        tensor([[1., 1., 1.]])
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
class _ContrastCutout:
    contrast: float
    cutout: float

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        device = generator.device
        drawn = torch.rand((4, count), generator=generator, device=device).to(images.device)[:, :, None, None, None]
        factor, offset = 1 + self.contrast * (2 * drawn[0] - 1), 255 * self.contrast * (drawn[1] - 0.5)
        changed = (images * factor + offset).clamp(0, 255)
        side = round(self.cutout * min(height, width))
        top, left = (drawn[2] * (height - side + 1)).floor(), (drawn[3] * (width - side + 1)).floor()
        rows = torch.arange(height, device=images.device)[:, None]
        columns = torch.arange(width, device=images.device)
        inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        return torch.where(inside, changed.mean((2, 3), keepdim=True), changed).round().to(images.dtype)


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
        # A table of all shifts: computing the modulus of every index is several times slower.
        shifts = torch.arange(-self.shift, self.shift + 1, device=device)
        table = (torch.arange(length, device=device) + shifts[:, None]) % length
        shifted = inputs.gather(1, table.index_select(0, starts + self.shift))
        factor = 1 + self.scale * (2 * factor - 1)
        return shifted * factor.to(inputs.dtype) + self.noise * white.to(inputs.dtype)
