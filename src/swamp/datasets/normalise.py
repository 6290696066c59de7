"""From stored pixels to what a network sees."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalise:
    """(..., C, H, W) uint8 -> float32: divided by `largest`, minus `mean`, divided by `std` of each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    largest: float = 255.0

    def __call__(self, images: Tensor) -> Tensor:
        """The normalised images, on the device they are on."""
        mean, std = _channels(self.mean, images.device), _channels(self.std, images.device)
        return images.to(torch.float32).div(self.largest).sub(mean).div(std)


@functools.cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Kept, as a copy to a GPU at each batch would wait for all work before it.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
