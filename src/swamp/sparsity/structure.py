"""In which pattern weights go. A structure picks, within one tensor, which of its living weights stay.

N:M and channel patterns are further functions of the same signature.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from swamp.errors import unknown

Structure = Callable[[Tensor, Tensor, int], Tensor]
"""(scores, alive, kept) of one tensor -> bool tensor of its shape with exactly `kept` weights, all alive before."""


def unstructured(score: Tensor, alive: Tensor, kept: int) -> Tensor:
    """Any `kept` weights: those with the largest scores; equal scores: the earlier index stays."""
    alive = alive.to(score.device)
    values = score.detach()[alive]
    if kept in (0, len(values)):
        return alive if kept else torch.zeros_like(alive)
    cut = values.kthvalue(len(values) - kept + 1).values
    chosen = alive & (score > cut)
    tied = (alive & (score == cut)).reshape(-1).nonzero().squeeze(1)
    chosen.view(-1)[tied[: kept - int(chosen.count_nonzero())]] = True
    return chosen


STRUCTURES: dict[str, Structure] = {"unstructured": unstructured}


def structure_named(name: str) -> Structure:
    """Look a structure up by name. Raises SwampError with suggestions."""
    if name not in STRUCTURES:
        raise unknown("structure", name, STRUCTURES)
    return STRUCTURES[name]
