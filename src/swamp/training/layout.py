"""The order in memory in which convolutions run fastest."""

from typing import Any

import torch
from torch import Tensor, nn


def arrange(model: nn.Module, *, narrow: bool) -> torch.memory_format:
    """Store the weights of `model` as its convolutions like them best, in place, and say how.

    Channels last makes a small residual network 1.3 times as fast on CPU. On a GPU it pays in bfloat16 (`narrow`):
    in float32 its kernels are the slower ones.
    """
    images = any(p.dim() == 4 for p in model.parameters())
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not images or not (on_cpu or narrow):
        return torch.contiguous_format
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return torch.channels_last


def arranged(inputs: Any, layout: torch.memory_format) -> Any:
    """A batch of images in that order; anything else as it is."""
    if layout == torch.channels_last and isinstance(inputs, Tensor) and inputs.dim() == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def arranged_for(model: nn.Module, inputs: Any) -> Any:
    """A batch in the order in which `model` is stored."""
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        return inputs
    last = any(
        p.dim() == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last)
        for p in model.parameters()
    )
    return arranged(inputs, torch.channels_last if last else torch.contiguous_format)
