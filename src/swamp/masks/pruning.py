"""Pruning: compute the next, smaller mask from scores."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from swamp.errors import SwampError, warn
from swamp.fields import check_value
from swamp.masks.allocation import allocation_named
from swamp.masks.floor import Slices, floor_of
from swamp.masks.mask import Mask
from swamp.masks.patterns import Unstructured, structure_named, top_k

EMPTY: Slices = {}


def prune_mask(
    mask: Mask,
    scores: Mapping[str, Tensor],
    nnz: int,
    *,
    allocation: str = "global",
    structure: str = "unstructured",
    min_per_layer: int | None = None,
    slices: Slices = EMPTY,
) -> Mask:
    """Keep exactly `nnz` of the active weights, those with the largest scores.

    Warns by name where a tensor would lose its last weight.

    Args:
        mask: The current mask.
        scores: One number per weight: tensors of the mask's names and shapes, finite on all active weights.
        nnz: Number of weights to keep. Whole channels keep as many as have at most `nnz` weights in total.
        allocation: How many weights each tensor keeps: "global", "uniform" or "erk".
        structure: Which weights a tensor keeps: "unstructured", "channel", or n:m as "2:4".
        min_per_layer: Number of weights that each tensor keeps at least. None: a tensor that would lose all of them
            keeps the best one of each output channel. 0: it may become empty.
        slices: Name -> dimensions of the slices that need an active weight, see `slices_of`.

    Returns:
        The pruned mask, a subset of `mask`. Ties: the earlier weight, in the mask's order, stays.

    Raises:
        SwampError: For scores that do not rank every active weight, and for impossible counts, structures and
            allocations.

    Examples:
        >>> import torch
        >>> mask = Mask({"weight": torch.ones(2, 3, dtype=torch.bool)})
        >>> scores = {"weight": torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])}
        >>> prune_mask(mask, scores, 3)["weight"].int().tolist()
        [[1, 0, 0], [0, 1, 1]]
    """
    smaller, message = pruned_mask(
        mask,
        scores,
        nnz,
        allocation=allocation,
        structure=structure,
        min_per_layer=min_per_layer,
        slices=slices,
    )
    if message:
        warn(message)
    return smaller


def pruned_mask(
    mask: Mask,
    scores: Mapping[str, Tensor],
    nnz: int,
    *,
    allocation: str,
    structure: str,
    min_per_layer: int | None,
    slices: Slices = EMPTY,
) -> tuple[Mask, str | None]:
    """Like `prune_mask`, but return the text of the warning instead of issuing it."""
    if not mask:
        raise SwampError("the mask names no tensor, so that there is nothing to prune.")
    check_value("nnz", int, nnz)
    pattern = structure_named(structure)
    pattern.check_allocation(allocation)
    _check_scores(mask, scores)
    if not isinstance(pattern, Unstructured):
        smaller = pattern.prune(mask, scores, nnz, allocation, min_per_layer or 0)
        return smaller, empty_layer_warning(mask, smaller)
    floor = floor_of(allocation_named(allocation), scores, mask, nnz, min_per_layer, slices)
    smaller = Mask({name: top_k(floor.scores[name], tensor, floor.counts[name]) for name, tensor in mask.items()})
    return smaller, floor.warning or empty_layer_warning(mask, smaller)


def empty_layer_warning(before: Mask, after: Mask) -> str | None:
    """The warning for tensors that are empty in `after` and not in `before`; None without any."""
    emptied = [name for name in after.empty_layers if name not in before.empty_layers]
    if not emptied:
        return None
    return (
        f"no weight of {', '.join(emptied)} is left at sparsity {after.sparsity:.4f}: the network may be disconnected. "
        "Set a minimum of weights per layer (min_per_layer)."
    )


def _check_scores(mask: Mask, scores: Mapping[str, Tensor]) -> None:
    check_value("scores", Mapping, scores)
    for name, active in mask.items():
        if name not in scores:
            raise SwampError(f"there is no score for {name!r}; a score must rank every tensor of the mask.")
        score = cast(Any, scores[name])
        if not isinstance(score, Tensor) or score.is_complex() or score.dtype == torch.bool:
            kind = score.dtype if isinstance(score, Tensor) else f"a {type(score).__name__}"
            raise SwampError(f"the score of {name!r} is {kind}; expected a tensor of real numbers.")
        if scores[name].shape != active.shape:
            raise SwampError(
                f"the score of {name!r} has shape {tuple(scores[name].shape)}, the mask {tuple(active.shape)}; "
                "expected one number per weight."
            )
        if not bool((torch.isfinite(scores[name].detach()) | ~active.to(scores[name].device)).all()):
            raise SwampError(
                f"the score of {name!r} is NaN or infinite, so its weights cannot be ranked; the mask is unchanged."
            )
