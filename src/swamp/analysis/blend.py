"""Weighted sums of a few networks: the points that lines, planes and hulls are made of."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swamp.training import State


@dataclass(frozen=True, eq=False)
class Blend:
    """sum_n share_n w_n, elementwise. Pruned weights, 0 in each network, stay exactly 0; one network alone is exact.

    Types are the first network's, and so is what is not of floating point. Sums run in float32, or wider where a
    network is.
    """

    states: Sequence[State]
    """The networks. All but the first may lack what they add nothing to, as directions lack normalisation statistics.
    Points with the very same sequence are evaluated together at less cost, so that it must not change."""
    shares: Sequence[float]
    """One a network; any numbers."""

    @torch.no_grad()
    def weights(self, without: Container[str] = ()) -> dict[str, Tensor]:
        """The weights meant, leaving out some by name."""
        return {name: self._sum(name, tensor) for name, tensor in self.states[0].items() if name not in without}

    def _sum(self, name: str, first: Tensor) -> Tensor:
        if not first.is_floating_point():
            return first
        # A network without a share stays out: 0 times what is not finite is not 0.
        pairs = zip(self.states, self.shares, strict=True)
        parts = [(state[name], share) for state, share in pairs if share and name in state]
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][0].to(first)
        total = torch.zeros_like(first, dtype=torch.promote_types(first.dtype, torch.float32))
        for tensor, share in parts:
            wide = torch.promote_types(total.dtype, tensor.dtype)
            total = torch.add(total.to(wide), tensor.to(total.device, wide), alpha=share)
        return total.to(first.dtype)
