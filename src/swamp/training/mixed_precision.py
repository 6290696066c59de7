"""Mixed precision: forward passes of training in bfloat16."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from swamp.training.dropout import with_inner_calls

_MAX_TOKENS = 256
"""Tokens: with more, the gradient of attention in bfloat16 is as fast."""


class Autocast:
    """Autocast to bfloat16 for the forward passes of one training; on CPU, attention over few tokens stays in float32.

    Its gradient in bfloat16 takes torch's CPU kernel (2.13) four to six times as long as in float32 there: half of a
    small transformer's step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # The first pass tells whether there is attention; without any, the others are spared looking for it.
        self.first, self.has_attention = device.type == "cpu", False

    @contextmanager
    def __call__(self) -> Generator[None]:
        """Around one forward pass."""
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
            return _layer(self, *args, **given)
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        self.used = True
        return _attention(*args, **given)


_layer = with_inner_calls(F.multi_head_attention_forward)


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
