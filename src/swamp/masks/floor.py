"""Weights that stay whatever their score: no layer is emptied, and no slice that would give NaN without a weight."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from swamp.errors import SwampError, shortened
from swamp.masks.allocation import Allocation
from swamp.masks.mask import Mask

Slices = Mapping[str, Sequence[int]]
"""Parameter name -> dimensions of the slices that need an active weight, see `parametrized.slices_of`."""


class Floor(NamedTuple):
    """How many weights each tensor keeps, and by which ranking."""

    scores: Mapping[str, Tensor]
    """The given scores; infinite for weights that stay in any case."""
    counts: Mapping[str, int]
    """Weights to keep in each tensor."""
    layers: tuple[str, ...] = ()
    """Tensors that would lose all their weights by the scores alone."""

    @property
    def warning(self) -> str | None:
        """The warning if there are such tensors."""
        if not self.layers:
            return None
        return (
            f"{shortened(list(self.layers))} would lose all weights by the scores alone. The best weight of each "
            "output channel is kept, as far as the sparsity allows. Choose a lower sparsity, another allocation (erk), "
            "a minimum of weights per layer (min_per_layer; 0 allows empty layers), or exclude the layer."
        )


def least_weights(mask: Mask, min_per_layer: int | None, slices: Slices) -> int:
    """Number of weights that any pruning of `mask` keeps; min_per_layer None: one in each tensor."""
    low = 1 if min_per_layer is None else min_per_layer
    needed = {
        name: math.prod(size for dim, size in enumerate(tensor.shape) if dim not in slices.get(name, range(9)))
        for name, tensor in mask.items()
    }
    return sum(min(nnz, max(low, needed[name] if name in slices else 0)) for name, nnz in mask.nnz_by_layer.items())


def floor_of(
    allocation: Allocation, scores: Mapping[str, Tensor], mask: Mask, nnz: int, low: int | None, slices: Slices
) -> Floor:
    """What pruning `mask` to `nnz` weights must keep.

    Args:
        allocation: Divides `nnz` weights among the tensors.
        scores: One number per weight.
        mask: The present mask.
        nnz: Number of weights to keep.
        low: Smallest number of weights of each tensor. None: a tensor that would lose all its weights keeps the best
            one of each output channel (dimension 0), or one weight if so many cannot be kept.
        slices: Slices that need an active weight.

    Raises:
        SwampError: If `nnz` is too small.
    """
    fixed = {name: best_of_slices(scores[name], mask[name], dims) for name, dims in slices.items() if name in mask}
    required = {name: int(fixed[name].count_nonzero()) if name in fixed else 0 for name in mask}
    lows = {name: max(low or 0, count) for name, count in required.items()}
    emptied: list[str] = []
    while True:
        ranked = _raised(scores, fixed)
        counts = allocation(ranked, mask, nnz, lows)
        more = [name for name, count in counts.items() if not count and mask.nnz_by_layer[name]]
        if low is not None or not more:
            return Floor(ranked, counts, tuple(emptied))
        least = least_weights(mask, low, slices)
        if nnz < least:
            raise SwampError(
                f"{nnz} weights cannot be kept: one in each of {len(mask)} layers, and one in each slice that would "
                f"give NaN without it, are {least}. Choose a lower sparsity, or allow empty layers (min_per_layer=0)."
            )
        emptied += more
        best = {name: best_of_slices(scores[name], mask[name], _channel(mask[name])) for name in emptied}
        floors = {name: int(tensor.count_nonzero()) for name, tensor in best.items()}
        if sum(floors.get(name, max(1, count)) for name, count in lows.items()) <= nnz:
            fixed.update(best)
            lows.update(floors)
        else:
            fixed = {name: tensor for name, tensor in fixed.items() if name not in best}
            lows.update(dict.fromkeys(emptied, 1))


def best_of_slices(score: Tensor, active: Tensor, dims: Sequence[int]) -> Tensor:
    """Bool tensor with the best active weight of each slice over `dims`; ties: the earlier index stays.

    Examples:
        >>> best_of_slices(torch.tensor([[1.0, 2.0], [5.0, 3.0]]), torch.tensor([[True, True], [False, True]]), (1,))
        tensor([[False,  True],
                [False,  True]])
    """
    order = [*(dim for dim in range(active.dim()) if dim not in dims), *dims]
    width = math.prod(active.shape[dim] for dim in dims)
    moved = active.to(score.device).permute(order)
    lines = moved.reshape(-1, width)
    values = score.detach().double().permute(order).reshape(-1, width).masked_fill(~lines, -torch.inf)
    best = lines & (values == values.amax(1, keepdim=True))
    first = best & (best.cumsum(1) == 1)
    return first.reshape(moved.shape).permute([order.index(dim) for dim in range(active.dim())]).contiguous()


def _channel(tensor: Tensor) -> Sequence[int]:
    return range(1, tensor.dim()) if tensor.dim() > 1 else range(tensor.dim())


def _raised(scores: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: score.detach().double().masked_fill(fixed[name], torch.inf) if name in fixed else score
        for name, score in scores.items()
    }
