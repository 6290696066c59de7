"""The memory format in which convolutions run fastest."""

from typing import Any

import torch
from torch import Tensor, nn


def to_fastest_memory_format(model: nn.Module, *, bfloat16: bool) -> torch.memory_format:
    """Convert `model` in place to the fastest memory format for its convolutions; return the format.

    On a CPU channels_last is 1.3 times faster for a small residual network. On a GPU it is faster in bfloat16 only.
    """
    images = any(p.dim() == 4 for p in model.parameters())
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not images or not (on_cpu or bfloat16):
        return torch.contiguous_format
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return torch.channels_last


def to_memory_format(inputs: Any, memory_format: torch.memory_format) -> Any:
    """A batch of images (n, c, h, w) in `memory_format`; other inputs are returned unchanged."""
    if memory_format == torch.channels_last and isinstance(inputs, Tensor) and inputs.dim() == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def to_memory_format_of(model: nn.Module, inputs: Any) -> Any:
    """A batch in the memory format of `model`."""
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        return inputs
    last = any(
        p.dim() == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last)
        for p in model.parameters()
    )
    return to_memory_format(inputs, torch.channels_last if last else torch.contiguous_format)
