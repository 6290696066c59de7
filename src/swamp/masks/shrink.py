"""From scores to the next, smaller mask."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.masks.mask import Mask
from swamp.masks.structure import structure_named


def shrink(
    mask: Mask,
    scores: Mapping[str, Tensor],
    kept: int,
    *,
    allocation: str = "global",
    structure: str = "unstructured",
    floor: int = 0,
) -> Mask:
    """Keep exactly `kept` of the living weights, those with the largest scores: a subset of `mask`.

    `allocation` says how many each tensor keeps, `structure` which ones ("unstructured", "2:4", "channel"), `floor`
    how many at least in each tensor. Whole channels keep as many as have no more than `kept` weights together.
    Warns by name when a tensor is left without weights. Raises SwampError for scores that do not rank every living
    weight, and for counts, patterns and allocations that cannot be had.
    """
    pattern = structure_named(structure)
    pattern.check_allocation(allocation)
    _check_scores(mask, scores)
    smaller = pattern.shrink(mask, scores, kept, allocation, floor)
    message = emptied(mask, smaller)
    if message:
        warnings.warn(message, stacklevel=2)
    return smaller


def emptied(before: Mask, after: Mask) -> str | None:
    """What to tell a user when `after` leaves a tensor without weights that had some in `before`."""
    died = [name for name in after.empty_layers if name not in before.empty_layers]
    if not died:
        return None
    return (
        f"no weight of {', '.join(died)} is left at sparsity {after.sparsity:.4f}: the network may be cut in two. "
        "A floor keeps some weights in every layer (--floor)."
    )


def _check_scores(mask: Mask, scores: Mapping[str, Tensor]) -> None:
    for name, alive in mask.items():
        if name not in scores:
            raise SwampError(f"there is no score for {name!r}; a score must rank every tensor the mask names.")
        if scores[name].shape != alive.shape:
            raise SwampError(
                f"the score of {name!r} has shape {tuple(scores[name].shape)}, the mask {tuple(alive.shape)}; "
                "a score gives one number for each weight."
            )
        if not bool((torch.isfinite(scores[name].detach()) | ~alive.to(scores[name].device)).all()):
            raise SwampError(
                f"the score of {name!r} is NaN or infinite, so its weights cannot be ranked; the mask stays as it was."
            )
