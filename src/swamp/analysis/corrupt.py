"""Corruptions of images and signals as the network takes them: noise, blur, lost contrast; the same for all models."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from swamp.errors import unknown
from swamp.training import BatchList, Seed
from swamp.training.data import Batch

CORRUPTIONS: Mapping[str, tuple[float, ...]] = {
    "noise": (0.25, 0.5, 1.0, 2.0),
    "blur": (3, 5, 7),
    "contrast": (0.25, 0.5, 0.75),
}
"""Kind -> strengths: Gaussian noise in standard deviations of the inputs; width of a box blur in samples; share of the
way to each example's mean."""


def why_not(inputs: Any) -> str | None:
    """Why a batch of inputs cannot be corrupted; None where it can."""
    if isinstance(inputs, Mapping):
        names = ", ".join(map(str, cast("Mapping[str, Any]", inputs)))
        return f"the inputs are a mapping ({names}), not images or signals."
    if not inputs.is_floating_point():
        return f"the inputs are {inputs.dtype}, which cannot be a little noisy."
    if not 2 <= inputs.dim() <= 4:
        return f"an example of shape {tuple(inputs.shape[1:])} is no signal (1-d) and no image (2-d, 3-d)."
    return None


def corrupted(data: BatchList, kind: str, strength: float, seed: Seed) -> BatchList:
    """The examples with their inputs corrupted. Noise is the same at each strength but for its size."""
    batches = list(data.in_order(1))
    if kind == "noise":
        scale = strength * standard_deviation([inputs for inputs, _ in batches])
        streams = (seed.at("noise", number).generator() for number in range(len(batches)))
        return BatchList([(noisy(x, scale, stream), y) for (x, y), stream in zip(batches, streams, strict=True)])
    if kind not in _BY_ITSELF:
        raise unknown("corruption", kind, CORRUPTIONS)
    change = _BY_ITSELF[kind]
    made: list[Batch] = [(change(inputs, strength), targets) for inputs, targets in batches]
    return BatchList(made)


def noisy(inputs: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Inputs plus white noise of standard deviation `scale`, drawn on CPU so that every device has the same."""
    noise = torch.randn(inputs.shape, generator=generator, dtype=torch.float32)
    return inputs + scale * noise.to(inputs)


def blurred(inputs: Tensor, width: float) -> Tensor:
    """Mean over `width` (odd) neighbours along the last axis, of images also the one before; edges are repeated."""
    reach = int(width) // 2
    for axis in (-1,) if inputs.dim() == 2 else (-1, -2):
        places = torch.arange(inputs.shape[axis], device=inputs.device)
        shifted = [(places + step).clamp(0, len(places) - 1) for step in range(-reach, reach + 1)]
        inputs = torch.stack([inputs.index_select(axis, index) for index in shifted]).mean(0)
    return inputs


def faded(inputs: Tensor, share: float) -> Tensor:
    """Each example moved this share of the way to its own mean."""
    middle = inputs.mean(tuple(range(1, inputs.dim())), keepdim=True)
    return torch.lerp(inputs, middle.expand_as(inputs), share)


def standard_deviation(parts: list[Tensor]) -> float:
    """Of all numbers in all parts, about their common mean."""
    count = sum(part.numel() for part in parts)
    mean = sum(float(part.double().sum()) for part in parts) / count
    return (sum(float((part.double() - mean).square().sum()) for part in parts) / count) ** 0.5


_BY_ITSELF: Mapping[str, Callable[[Tensor, float], Tensor]] = {"blur": blurred, "contrast": faded}
