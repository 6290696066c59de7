"""The trace of a Hessian from random probes: of the whole matrix, of the active weights, and of each layer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swamp.analysis.hessian import Hessian
from swamp.errors import SwampError
from swamp.training import Seed

_MAX_NUMBERS = 2**24
"""Numbers in the probes of a round: 128 MB in float64, and the products take the same again."""
_ROUND = 4
"""Probes per round; after each round the tolerance is checked."""


@dataclass(frozen=True)
class TraceEstimate:
    """Mean over probes and its standard error."""

    mean: float
    error: float
    """Standard error of the mean: standard deviation (n - 1) of the probes / sqrt(n). NaN for one probe."""
    probes: int

    @classmethod
    def of(cls, values: Tensor) -> "TraceEstimate":
        """The mean, and its standard error, of one value per probe (n,)."""
        count = len(values)
        error = float(values.std()) / math.sqrt(count) if count > 1 else math.nan
        return cls(float(values.mean()), error, count)

    def within(self, tolerance: float) -> bool:
        """Whether the standard error is at most `tolerance` * |mean|."""
        return self.error <= tolerance * abs(self.mean)


@dataclass(frozen=True)
class Trace:
    """Traces of blocks of one Hessian, all from the same probes."""

    whole: TraceEstimate
    """Trace of the whole Hessian."""
    active: TraceEstimate
    """Trace of the block of the active weights (not pruned)."""
    layers: Mapping[str, TraceEstimate]
    """Parameter name -> trace of its block; they sum to `whole`."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in the record of the analysis."""
        return {
            "trace": dict(vars(self.whole)),
            "active": dict(vars(self.active)),
            "layers": {name: {"mean": part.mean, "error": part.error} for name, part in self.layers.items()},
        }


def hutchinson(
    hessian: Hessian, *, tolerance: float = 0.05, min_probes: int = 8, max_probes: int = 64, seed: int = 0
) -> Trace:
    """Estimate the trace of H as the mean of v'Hv over random signs v (Hutchinson 1990), by blocks.

    Each v is split into its active part a = m * v and its pruned part b, with one product for each: active = a'Ha,
    whole = a'Ha + b'Hb, and layer l = a_l'(Ha)_l + b_l'(Hb)_l. All are unbiased. v'Hv would need half the products, but
    it contains 2 a'Hb, which is noise. If nothing is pruned, b is zero and whole equals active. One probe is exact for
    a diagonal H.

    Probe i is a function of (seed, i): networks of the same size get the same probes, which reduces the noise of the
    difference between their traces.

    Args:
        hessian: the Hessian, with its mask.
        tolerance: probes are added until the standard errors of whole and active are below this fraction of the means.
        min_probes: minimum number of probes.
        max_probes: maximum number of probes.
        seed: seed of the probes.

    Raises:
        SwampError: min_probes < 1 or max_probes < min_probes.
    """
    if not 1 <= min_probes <= max_probes:
        raise SwampError(f"1 <= min_probes <= max_probes is required, got {min_probes} and {max_probes}.")
    per_round = max(1, min(_ROUND, _MAX_NUMBERS // (2 * hessian.size)))
    blocks = torch.zeros(0, 2, len(hessian.layers), dtype=torch.float64)
    while True:
        start = len(blocks)
        end = min(start + per_round, min_probes if start < min_probes else max_probes)
        blocks = torch.cat([blocks, _quadratic_forms(hessian, range(start, end), seed)])
        trace = Trace(
            TraceEstimate.of(blocks.sum((1, 2))),
            TraceEstimate.of(blocks[:, 0].sum(1)),
            {name: TraceEstimate.of(blocks[:, :, layer].sum(1)) for layer, name in enumerate(hessian.layers)},
        )
        enough = len(blocks) >= min_probes and all(part.within(tolerance) for part in (trace.whole, trace.active))
        if enough or len(blocks) >= max_probes or not math.isfinite(trace.whole.mean):
            return trace


def random_signs(size: int, seed: Seed) -> Tensor:
    """Random signs (size,), float64, on the CPU."""
    return torch.randint(0, 2, (size,), generator=seed.generator()).double() * 2 - 1


def _quadratic_forms(hessian: Hessian, numbers: range, seed: int) -> Tensor:
    """a_l'(Ha)_l and b_l'(Hb)_l for each probe: (probe, 2, layer)."""
    probes = torch.stack([random_signs(hessian.size, Seed(seed).at("curvature", "probe", n)) for n in numbers])
    probes = probes.to(hessian.device)
    active = hessian.active
    pruned = not bool(active.all())
    split = torch.stack([probes * active, probes * ~active], 1) if pruned else probes[:, None]
    flat = split.flatten(0, 1)
    sums = torch.stack([part.sum(1) for part in hessian.by_layer(flat * hessian(flat))], 1)
    sums = sums.view(*split.shape[:2], -1).cpu()
    return sums if pruned else torch.cat([sums, torch.zeros_like(sums)], 1)
