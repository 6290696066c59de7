"""Mixed precision: forward passes of training under bfloat16 autocast."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from swamp.training.dropout import with_inner_calls

_MAX_TOKENS = 256
"""Tokens per sequence up to which attention is computed in float32 on a CPU."""


class Autocast:
    """bfloat16 autocast for the forward passes of one training; on a CPU, attention over few tokens stays in float32.

    For short sequences torch's CPU kernel (2.13) for the gradient of attention is 4 to 6 times slower in bfloat16 than
    in float32, which is half of a training step of a small transformer.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # The first pass detects attention; without attention, later passes skip the mode.
        self.first, self.has_attention = device.type == "cpu", False

    @contextmanager
    def __call__(self) -> Generator[None]:
        """Context for one forward pass."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            if not (self.first or self.has_attention):
                yield
                return
            with _Float32Attention() as attention:
                yield
            self.first, self.has_attention = False, self.has_attention or attention.used


class _Float32Attention(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.used = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.multi_head_attention_forward:
            return _attention_layer(self, *args, **given)
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        self.used = True
        return _attention(*args, **given)


_attention_layer = with_inner_calls(F.multi_head_attention_forward)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    if key.shape[-2] > _MAX_TOKENS or query.dtype not in (torch.float32, torch.bfloat16):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    with torch.autocast("cpu", enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs).to(torch.bfloat16)
