"""Weights go one by one, wherever they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from swamp.masks.allocate import allocation_named
from swamp.masks.mask import Mask


@dataclass(frozen=True)
class Unstructured:
    """Any weights, one by one."""

    def check_allocation(self, allocation: str) -> None:
        """Every allocation goes with it."""
        allocation_named(allocation)

    def check(self, mask: Mask, kept: int, floor: int = 0) -> None:
        """Every layer can have it."""

    def shrink(self, mask: Mask, scores: Mapping[str, Tensor], kept: int, allocation: str, floor: int) -> Mask:
        """Exactly `kept` weights: those with the largest scores in each tensor's share."""
        counts = allocation_named(allocation)(scores, mask, kept, floor)
        return Mask({name: largest(scores[name], tensor, counts[name]) for name, tensor in mask.items()})


def largest(score: Tensor, alive: Tensor, kept: int) -> Tensor:
    """Bool tensor of the `kept` living weights with the largest scores; equal scores: the earlier index stays."""
    alive = alive.to(score.device)
    values = score.detach()[alive]
    if kept in (0, len(values)):
        return alive if kept else torch.zeros_like(alive)
    cut = values.kthvalue(len(values) - kept + 1).values
    # Contiguous, whatever the layout of the weight: ties are written through a flat view.
    chosen = (alive & (score > cut)).contiguous()
    tied = (alive & (score == cut)).reshape(-1).nonzero().squeeze(1)
    chosen.view(-1)[tied[: kept - int(chosen.count_nonzero())]] = True
    return chosen
