"""The trace of a Hessian from random probes: whole, of the survivors, and of each layer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swamp.analysis.hessian import Hessian
from swamp.errors import SwampError
from swamp.training import Seed

_MOST_NUMBERS = 2**24
"""Of the probes of a round: 128 MB in float64, and their products as much again."""
_ROUND = 4
"""Probes after which it is asked whether they are enough."""


@dataclass(frozen=True)
class Estimate:
    """A mean over probes."""

    mean: float
    error: float
    """Standard error of the mean: the probes' standard deviation (n - 1) over sqrt(n). NaN for one probe."""
    probes: int

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """Of one value a probe (n,)."""
        count = len(values)
        error = float(values.std()) / math.sqrt(count) if count > 1 else math.nan
        return cls(float(values.mean()), error, count)

    def within(self, tolerance: float) -> bool:
        """Whether the error is at most so large a share of the mean."""
        return self.error <= tolerance * abs(self.mean)


@dataclass(frozen=True)
class Trace:
    """Traces of blocks of one Hessian, all from the same probes."""

    whole: Estimate
    alive: Estimate
    """Of the block of the survivors."""
    layers: Mapping[str, Estimate]
    """Parameter name -> trace of its block; they add up to `whole`."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the record of the analysis has them."""
        return {
            "trace": dict(vars(self.whole)),
            "alive": dict(vars(self.alive)),
            "layers": {name: {"mean": part.mean, "error": part.error} for name, part in self.layers.items()},
        }


def hutchinson(hessian: Hessian, *, tolerance: float = 0.05, least: int = 8, most: int = 64, seed: int = 0) -> Trace:
    """Trace of H as the mean over random signs v of v'Hv (Hutchinson 1990), by blocks.

    Each v is split into its surviving part a = m * v and its pruned part b, with a product of its own for each. So
    alive = a'Ha, whole = a'Ha + b'Hb, and layer l = a_l'(Ha)_l + b_l'(Hb)_l, all without bias. v'Hv itself would cost
    half, but it adds 2 a'Hb, which is noise: little weighs as much, as most weights are pruned. Where nothing is
    pruned there is no b, and whole and alive are one. A diagonal H is exact with one probe.

    Probes are added until the standard errors of whole and alive are at most `tolerance` of their means, at least
    `least` and at most `most` of them. Probe i is a function of (seed, i) alone: the same for every network of one
    size, whose traces therefore differ with less noise than each has. Raises SwampError for least < 1 or most < least.
    """
    if not 1 <= least <= most:
        raise SwampError(f"there must be at least one probe, and least <= most: got least={least}, most={most}.")
    together = max(1, min(_ROUND, _MOST_NUMBERS // (2 * hessian.size)))
    blocks = torch.zeros(0, 2, len(hessian.layers), dtype=torch.float64)
    while True:
        start = len(blocks)
        end = min(start + together, least if start < least else most)
        blocks = torch.cat([blocks, _blocks(hessian, range(start, end), seed)])
        trace = Trace(
            Estimate.of(blocks.sum((1, 2))),
            Estimate.of(blocks[:, 0].sum(1)),
            {name: Estimate.of(blocks[:, :, layer].sum(1)) for layer, name in enumerate(hessian.layers)},
        )
        enough = len(blocks) >= least and all(part.within(tolerance) for part in (trace.whole, trace.alive))
        if enough or len(blocks) >= most or not math.isfinite(trace.whole.mean):
            return trace


def signs(size: int, seed: Seed) -> Tensor:
    """Random signs (size,), float64, on CPU."""
    return torch.randint(0, 2, (size,), generator=seed.generator()).double() * 2 - 1


def _blocks(hessian: Hessian, numbers: range, seed: int) -> Tensor:
    """(probe, 2, layer): a_l'(Ha)_l and b_l'(Hb)_l."""
    probes = torch.stack([signs(hessian.size, Seed(seed).at("curvature", "probe", n)) for n in numbers])
    probes = probes.to(hessian.device)
    alive = hessian.alive
    pruned = not bool(alive.all())
    split = torch.stack([probes * alive, probes * ~alive], 1) if pruned else probes[:, None]
    flat = split.flatten(0, 1)
    sums = torch.stack([part.sum(1) for part in hessian.by_layer(flat * hessian(flat))], 1)
    sums = sums.view(*split.shape[:2], -1).cpu()
    return sums if pruned else torch.cat([sums, torch.zeros_like(sums)], 1)
