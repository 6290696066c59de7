"""N:M: of every m consecutive weights along the input dimension, n live."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.masks.allocate import allocation_named, floors, global_allocation
from swamp.masks.mask import Mask
from swamp.masks.schedule import check_cycles
from swamp.masks.unstructured import largest


@dataclass(frozen=True)
class Groups:
    """Of every m inputs in a row n live, as 2:4 (Mishra et al. 2021); its densities are m-1 of m down to n of m.

    A group is m consecutive weights along dimension 1: the inputs of a Linear, the input channels of a convolution at
    one output channel and one kernel position (of a transposed convolution dimension 1 is the output).
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise SwampError(
                f"structure {self} is no pattern: n of every m weights live, at least 1 and fewer than m, as in 2:4."
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def check_allocation(self, allocation: str) -> None:
        """Refuse what the pattern cannot follow: every group of every layer keeps the same number."""
        allocation_named(allocation)
        if allocation not in ("global", "uniform"):
            raise SwampError(
                f"structure {self} gives every layer the same density, so allocation {allocation!r} cannot be had. "
                "Leave the allocation out, or take another structure."
            )

    def check(self, mask: Mask, kept: int, floor: int = 0) -> None:
        """Refuse, by name, a tensor that groups do not divide, and one whose share of `kept` is below its floor."""
        for name, tensor in mask.items():
            if tensor.dim() < 2 or tensor.shape[1] % self.m:
                raise SwampError(
                    f"structure {self} needs groups of {self.m} along dimension 1, the inputs, and {name!r} has the "
                    f"shape {tuple(tensor.shape)}. Leave it dense with --exclude {name!r}, or take another m."
                )
        self._check_floor(mask, {name: tensor.numel() * kept // mask.prunable for name, tensor in mask.items()}, floor)

    def densities(self, given: Sequence[float], cycles: int = 0) -> tuple[float, ...]:
        """Densities 1, (m-1)/m, ..., n/m; `cycles` prunings of nearly equal size; or those given, made exact.

        Raises SwampError for given densities that are not multiples of 1/m, and for more prunings than m - n.
        """
        if given:
            return tuple(self._multiple(density) for density in given)
        most = self.m - self.n
        if cycles > most:
            raise SwampError(f"structure {self} has {most} prunings at most, one weight of each group at a time.")
        steps = cycles or most
        check_cycles(steps, f"structure {self}")
        return tuple((self.m - round(step * most / steps)) / self.m for step in range(steps + 1))

    def shrink(self, mask: Mask, scores: Mapping[str, Tensor], kept: int, allocation: str, floor: int) -> Mask:
        """Exactly `kept` weights: the best of every group, then the second best, and so on.

        kept = k/m of all weights leaves k in every group, and groups that have fewer stay as they are. Of equal scores
        the earlier index stays. A number between two such counts gives one more to the groups whose next weight has
        the largest score. `allocation` has nothing to decide.
        """
        self.check(mask, kept)
        places = {name: self._places(scores[name], tensor) for name, tensor in mask.items()}
        if not 0 <= kept <= mask.kept:
            raise SwampError(f"{kept} weights cannot be kept: {mask.kept} live. Ask for a sparsity that is higher.")
        by_place = sum(torch.bincount(place[place < self.m], minlength=self.m).cpu() for place in places.values())
        assert isinstance(by_place, Tensor)
        upto = by_place.cumsum(0)
        whole = int((upto <= kept).count_nonzero())
        best = Mask({name: place < whole for name, place in places.items()})
        smaller = best
        if best.kept < kept:
            rest = kept - best.kept
            nexts = Mask({name: place == whole for name, place in places.items()})
            counts = global_allocation(scores, nexts, rest)
            more = {name: largest(scores[name], tensor, counts[name]) for name, tensor in nexts.items()}
            smaller = Mask({name: tensor | more[name] for name, tensor in best.items()})
        self._check_floor(mask, smaller.kept_by_layer, floor)
        return smaller

    def _places(self, score: Tensor, alive: Tensor) -> Tensor:
        """Place of each weight in its group by falling score, 0 to m - 1; of a dead weight m."""
        alive = alive.to(score.device)
        values = score.detach() if score.dtype == torch.float32 else score.detach().double()
        # A group is a row: the input dimension last, cut into pieces of m.
        moved = values.masked_fill(~alive, -torch.inf).movedim(1, -1)
        order = moved.reshape(-1, self.m).argsort(dim=1, descending=True, stable=True)
        rows = torch.empty_like(order).scatter_(1, order, torch.arange(self.m, device=order.device).expand_as(order))
        return rows.reshape(moved.shape).movedim(-1, 1).contiguous().masked_fill(~alive, self.m)

    def _check_floor(self, mask: Mask, counts: Mapping[str, int], floor: int) -> None:
        for name, low in floors(mask.kept_by_layer, floor).items():
            if counts[name] < low:
                raise SwampError(
                    f"a floor of {floor} asks for {low} weights of {name!r}, and structure {self} leaves "
                    f"{counts[name]}. Take a smaller floor, or leave the layer dense with --exclude {name!r}."
                )

    def _multiple(self, density: float) -> float:
        kept = round(density * self.m)
        if kept < 1 or abs(density * self.m - kept) > 1e-3:
            multiples = ", ".join(f"{k / self.m:.4g}" for k in range(self.m, 0, -1)) if self.m <= 16 else "..."
            raise SwampError(
                f"structure {self} goes through densities that are multiples of 1/{self.m} ({multiples}); "
                f"{density:g} is none."
            )
        return kept / self.m
