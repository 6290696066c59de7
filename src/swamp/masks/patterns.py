"""Sparsity patterns (structures): unstructured, N:M, and whole channels."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swamp.errors import SwampError, unknown
from swamp.masks.allocation import SHARES, allocation_named, global_allocation, minimum_counts
from swamp.masks.mask import Mask
from swamp.masks.schedule import check_cycles


@dataclass(frozen=True)
class Unstructured:
    """Any weights, one by one."""

    def check_allocation(self, allocation: str) -> None:
        """Every allocation is supported."""
        allocation_named(allocation)

    def check(self, mask: Mask, nnz: int, min_per_layer: int = 0) -> None:
        """Every mask is supported."""

    def prune(self, mask: Mask, scores: Mapping[str, Tensor], nnz: int, allocation: str, min_per_layer: int) -> Mask:
        """Keep exactly `nnz` weights: in each tensor those with the largest scores."""
        counts = allocation_named(allocation)(scores, mask, nnz, min_per_layer)
        return Mask({name: top_k(scores[name], tensor, counts[name]) for name, tensor in mask.items()})


@dataclass(frozen=True)
class NMPattern:
    """n of every m consecutive weights of a row, as 2:4 (Mishra et al. 2021); densities (m-1)/m, ..., n/m.

    A group is m consecutive weights along dimension 1: the inputs of a Linear, the input channels of a convolution at
    one output channel and one kernel position (for a transposed convolution dimension 1 is the output channel).
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise SwampError(f"structure {self} is not a valid n:m pattern: expected 1 <= n < m, as in 2:4.")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def check_allocation(self, allocation: str) -> None:
        """Raise SwampError for an allocation with different densities per layer: every group keeps the same number."""
        allocation_named(allocation)
        if allocation not in ("global", "uniform"):
            raise SwampError(
                f"structure {self} gives every layer the same density, so allocation {allocation!r} has no effect. "
                "Omit the allocation, or choose another structure."
            )

    def check(self, mask: Mask, nnz: int, min_per_layer: int = 0) -> None:
        """Raise SwampError if m does not divide dimension 1, or if fewer than `min_per_layer` weights remain."""
        for name, tensor in mask.items():
            if tensor.dim() < 2 or tensor.shape[1] % self.m:
                raise SwampError(
                    f"structure {self} needs groups of {self.m} along dimension 1, the inputs, and {name!r} has the "
                    f"shape {tuple(tensor.shape)}. Leave it dense with exclude=({name!r},), or choose another m."
                )
        counts = {name: tensor.numel() * nnz // mask.prunable for name, tensor in mask.items()}
        self._check_minimum(mask, counts, min_per_layer)

    def densities(self, given: Sequence[float], cycles: int = 0) -> tuple[float, ...]:
        """Densities 1, (m-1)/m, ..., n/m; in `cycles` nearly equal prunings, or the `given` ones made exact.

        Raises SwampError for given densities that are not multiples of 1/m, and for more than m - n prunings.
        """
        if given:
            return tuple(self._multiple(density) for density in given)
        most = self.m - self.n
        if cycles > most:
            raise SwampError(f"structure {self} allows at most {most} prunings, one weight of each group at a time.")
        steps = cycles or most
        check_cycles(steps, f"structure {self}")
        return tuple((self.m - round(step * most / steps)) / self.m for step in range(steps + 1))

    def prune(self, mask: Mask, scores: Mapping[str, Tensor], nnz: int, allocation: str, min_per_layer: int) -> Mask:
        """Keep exactly `nnz` weights: the best of every group, then the second best, and so on.

        nnz = k/m of all weights leaves k in every group; groups with fewer stay as they are. For a number in between,
        the groups with the largest next scores keep one more. Ties: the earlier index stays. `allocation` is unused.
        """
        self.check(mask, nnz)
        ranks = {name: self._ranks(scores[name], tensor) for name, tensor in mask.items()}
        if not 0 <= nnz <= mask.nnz:
            raise SwampError(f"{nnz} weights cannot be kept: {mask.nnz} are active. Choose a higher sparsity.")
        by_rank = sum(torch.bincount(rank[rank < self.m], minlength=self.m).cpu() for rank in ranks.values())
        assert isinstance(by_rank, Tensor)
        complete = int((by_rank.cumsum(0) <= nnz).count_nonzero())
        smaller = Mask({name: rank < complete for name, rank in ranks.items()})
        if smaller.nnz < nnz:
            following = Mask({name: rank == complete for name, rank in ranks.items()})
            counts = global_allocation(scores, following, nnz - smaller.nnz)
            more = {name: top_k(scores[name], tensor, counts[name]) for name, tensor in following.items()}
            smaller = Mask({name: tensor | more[name] for name, tensor in smaller.items()})
        self._check_minimum(mask, smaller.nnz_by_layer, min_per_layer)
        return smaller

    def _ranks(self, score: Tensor, active: Tensor) -> Tensor:
        """Rank of each weight in its group by falling score, 0 to m - 1; m for a pruned weight."""
        active = active.to(score.device)
        values = score.detach() if score.dtype == torch.float32 else score.detach().double()
        # A group is a row: the input dimension last, cut into pieces of m.
        moved = values.masked_fill(~active, -torch.inf).movedim(1, -1)
        order = moved.reshape(-1, self.m).argsort(dim=1, descending=True, stable=True)
        rows = torch.empty_like(order).scatter_(1, order, torch.arange(self.m, device=order.device).expand_as(order))
        return rows.reshape(moved.shape).movedim(-1, 1).contiguous().masked_fill(~active, self.m)

    def _check_minimum(self, mask: Mask, counts: Mapping[str, int], min_per_layer: int) -> None:
        for name, low in minimum_counts(mask.nnz_by_layer, min_per_layer).items():
            if counts[name] < low:
                raise SwampError(
                    f"a minimum of {min_per_layer} per layer requires {low} weights of {name!r}, and structure {self} "
                    f"leaves {counts[name]}. Choose a smaller minimum, or leave the layer dense: exclude=({name!r},)."
                )

    def _multiple(self, density: float) -> float:
        count = round(density * self.m)
        if count < 1 or abs(density * self.m - count) > 1e-3:
            multiples = ", ".join(f"{k / self.m:.4g}" for k in range(self.m, 0, -1)) if self.m <= 16 else "..."
            raise SwampError(
                f"structure {self} needs densities that are multiples of 1/{self.m} ({multiples}), got {density:g}."
            )
        return count / self.m


@dataclass(frozen=True)
class Channels:
    """Whole output channels: rows of a Linear, filters of a convolution; the model's output layer stays dense.

    Only weights are masked: the bias and the BatchNorm of a pruned channel stay, and so do the weights of the next
    layer that read it. A channel is a row of dimension 0, which for a transposed convolution is an input channel.
    """

    def check_allocation(self, allocation: str) -> None:
        """Raise SwampError unless the allocation is global or given by shares (uniform, erk)."""
        allocation_named(allocation)
        if allocation != "global" and allocation not in SHARES:
            raise SwampError(f"structure channel supports {', '.join(['global', *SHARES])}, not {allocation!r}.")

    def check(self, mask: Mask, nnz: int, min_per_layer: int = 0) -> None:
        """Raise SwampError for a partly pruned channel, and where `nnz` is below one channel of each tensor."""
        for name, tensor in mask.items():
            rows = _rows(tensor)
            partial = (rows.any(1) & ~rows.all(1)).nonzero()
            if len(partial):
                raise SwampError(
                    f"channel {int(partial[0])} of {name!r} is partly pruned, so it cannot be kept or removed as a "
                    "whole. Start from a dense mask."
                )
        reserved = _reserved(mask, min_per_layer)
        least = sum(count * _rows(mask[name]).shape[1] for name, count in reserved.items())
        if nnz < least:
            raise SwampError(
                f"{nnz} of {mask.prunable} weights cannot be kept in whole channels: one channel of each tensor, and "
                f"at least {min_per_layer} weights per layer, require {least}. Choose a lower sparsity or a smaller "
                "minimum."
            )

    def prune(self, mask: Mask, scores: Mapping[str, Tensor], nnz: int, allocation: str, min_per_layer: int) -> Mask:
        """Keep the first channels of one ranking, as many as have at most `nnz` weights in total.

        The score of a channel is the mean score of its weights, so that layers of different width compare. The ranking
        starts with the reserved channels of each tensor: the best one, or as many as hold `min_per_layer` weights. The
        others follow by score (global), or by the density of their tensor once they are kept, over its share (uniform,
        erk). Ties: the earlier tensor, then the earlier channel. With `nnz` at or above the active weights nothing is
        pruned.
        """
        self.check(mask, nnz, min_per_layer)
        reserved = _reserved(mask, min_per_layer)
        shares = None if allocation == "global" else SHARES[allocation](mask)
        keys: list[NDArray[Any]] = []
        widths: list[NDArray[Any]] = []
        for name, tensor in mask.items():
            negated, width = _negated_means(scores[name], tensor), _rows(tensor).shape[1]
            ranks = negated.argsort(kind="stable").argsort(kind="stable")
            key = negated if shares is None else (ranks + 1) * width / shares[name]
            keys.append(np.where(ranks < reserved[name], -np.inf, key))
            # A pruned channel stays pruned: it comes last, and is wider than the space left.
            pruned = ~_rows(tensor).any(1).cpu().numpy()
            keys[-1][pruned] = np.inf
            widths.append(np.where(pruned, nnz + 1, width))
        order = np.concatenate(keys).argsort(kind="stable")
        total = np.concatenate(widths)[order].cumsum()
        chosen = np.zeros(len(order), dtype=bool)
        chosen[order[: total.searchsorted(nnz, side="right")]] = True
        parts = np.split(chosen, np.cumsum([len(key) for key in keys])[:-1])
        return Mask({name: _expanded(part, mask[name]) for name, part in zip(mask, parts, strict=True)})


Structure = Unstructured | NMPattern | Channels
"""A sparsity pattern. The scores that `prune` is given are finite on all active weights."""

STRUCTURES: dict[str, Callable[..., Structure]] = {
    "unstructured": Unstructured,
    "n:m": NMPattern,
    "channel": Channels,
}
"""Patterns by name; n and m are any numbers, as in 2:4."""


def structure_named(name: str) -> Structure:
    """Look up a structure by name, such as "2:4". Raises SwampError with suggestions."""
    if numbers := re.fullmatch(r"(\d+):(\d+)", name):
        return NMPattern(int(numbers[1]), int(numbers[2]))
    plain = {other: pattern for other, pattern in STRUCTURES.items() if other != "n:m"}
    if name not in plain:
        raise unknown("structure", name, [*plain, "2:4", "1:4", "4:8"])
    return plain[name]()


def top_k(score: Tensor, active: Tensor, count: int) -> Tensor:
    """Bool tensor of the `count` active weights with the largest scores; ties: the earlier index stays."""
    active = active.to(score.device)
    values = score.detach()[active]
    if count in (0, len(values)):
        return active if count else torch.zeros_like(active)
    threshold = values.kthvalue(len(values) - count + 1).values
    # Contiguous, whatever the memory format of the weight: ties are written through a flat view.
    chosen = (active & (score > threshold)).contiguous()
    tied = (active & (score == threshold)).reshape(-1).nonzero().squeeze(1)
    chosen.view(-1)[tied[: count - int(chosen.count_nonzero())]] = True
    return chosen


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, 1) if tensor.dim() == 0 else tensor.reshape(len(tensor), tensor.shape[1:].numel())


def _reserved(mask: Mask, min_per_layer: int) -> dict[str, int]:
    """Channels that each tensor keeps at least: one, or as many as hold `min_per_layer` weights."""
    counts: dict[str, int] = {}
    for name, low in minimum_counts(mask.nnz_by_layer, min_per_layer).items():
        rows = _rows(mask[name])
        counts[name] = min(max(1, math.ceil(low / max(1, rows.shape[1]))), int(rows.any(1).count_nonzero()))
    return counts


def _negated_means(score: Tensor, active: Tensor) -> NDArray[Any]:
    """Negated mean score of each channel, so that the best sorts first; infinite for pruned channels."""
    means = _rows(score.detach()).cpu().double().mean(1)
    return (-means).masked_fill(~_rows(active).any(1).cpu(), torch.inf).numpy()


def _expanded(channels: NDArray[Any], like: Tensor) -> Tensor:
    rows = torch.from_numpy(channels).to(like.device)  # pyright: ignore[reportUnknownMemberType]
    return rows.reshape((*like.shape[:1], *(1 for _ in like.shape[1:]))).expand_as(like).contiguous()
