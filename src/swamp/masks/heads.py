"""Density of attention heads."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp.masks.mask import Mask

_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
_SEPARATE = (
    *(("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v")),
    tuple(f"{part}_proj_weight" for part in "qkv"),
)


def head_densities(model: nn.Module, mask: Mask) -> dict[str, list[float]]:
    """Density of each head's rows in query, key and value: name of the attention module -> one number per head.

    Supports torch's attention and the usual names of transformers and this package. Other modules, and modules without
    weights in the mask, are left out.
    """
    found: dict[str, list[float]] = {}
    modules: dict[str, nn.Module] = dict(cast(Any, model).named_modules())
    for name, module in modules.items():
        heads = _head_count(module)
        rows = _rows(name, mask) if heads else []
        # Grouped-query attention: keys and values have fewer rows, which belong to several heads.
        rows = [part for part in rows if part.shape[0] == rows[0].shape[0] and part.shape[0] % heads == 0]
        if rows:
            active = torch.cat([part.reshape(heads, -1) for part in rows], dim=1)
            found[name] = [float(share) for share in active.double().mean(1)]
    return found


def _head_count(module: Any) -> int:
    of_config = getattr(getattr(module, "config", None), "num_attention_heads", None)
    counts = [*(getattr(module, name, None) for name in _COUNTS), of_config]
    return next((count for count in counts if isinstance(count, int) and count > 0), 0)


def _rows(name: str, mask: Mask) -> list[Tensor]:
    """The masks of query, key and value of the module `name`, each (outputs, inputs, ...)."""
    prefix = f"{name}." if name else ""
    for fused in ("c_attn.weight", "in_proj_weight"):
        active = mask.get(prefix + fused)
        if active is None or active.dim() < 2:
            continue
        if active.shape[0] == 3 * active.shape[1]:
            return list(active.chunk(3))
        if active.dim() == 2 and active.shape[1] == 3 * active.shape[0]:
            return list(active.t().chunk(3))  # the Conv1D of GPT-2 stores its inputs first
        return []  # query, key and value of other sizes
    for names in _SEPARATE:
        found = [
            mask[full]
            for part in names
            for full in (prefix + part, f"{prefix}{part}.weight")
            if full in mask and mask[full].dim()
        ]
        if found:
            return found
    return []
