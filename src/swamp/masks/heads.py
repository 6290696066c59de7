"""How much of each attention head lives."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp.masks.mask import Mask

_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
_APART = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))


def head_densities(model: nn.Module, mask: Mask) -> dict[str, list[float]]:
    """Density of each head's rows in query, key and value: name of the attention module -> one number a head.

    Known are torch's attention and what transformers and this package call by the usual names; others, and those whose
    weights are not in the mask, are left out.
    """
    found: dict[str, list[float]] = {}
    modules: dict[str, nn.Module] = dict(cast(Any, model).named_modules())
    for name, module in modules.items():
        heads = _count(module)
        rows = _rows(module, name, mask) if heads else []
        # Keys and values that several queries share have fewer rows, which are no head's own.
        rows = [one for one in rows if one.shape[0] == rows[0].shape[0] and one.shape[0] % heads == 0]
        if rows:
            alive = torch.cat([one.reshape(heads, -1) for one in rows], dim=1)
            found[name] = [float(share) for share in alive.double().mean(1)]
    return found


def _count(module: Any) -> int:
    of_config = getattr(getattr(module, "config", None), "num_attention_heads", None)
    counts = [*(getattr(module, name, None) for name in _COUNTS), of_config]
    return next((count for count in counts if isinstance(count, int) and count > 0), 0)


def _rows(module: nn.Module, name: str, mask: Mask) -> list[Tensor]:
    """What of the mask makes queries, keys and values of `module`, each (outputs, inputs)."""
    prefix = f"{name}." if name else ""
    # GPT-2 keeps the three side by side, inputs first; torch one above the other.
    for together, turned in (("c_attn.weight", True), ("in_proj_weight", False)):
        alive = mask.get(prefix + together)
        if alive is not None:
            return list((alive.t() if turned else alive).chunk(3))
    for names in (*_APART, *(tuple(f"{part}_proj_weight" for part in "qkv"),)):
        found = [mask[full] for part in names for full in (prefix + part, f"{prefix}{part}.weight") if full in mask]
        if found:
            return found
    return []
