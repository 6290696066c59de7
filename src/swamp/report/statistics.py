"""Means over seeds with 95 % t-intervals, alone and paired."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, cast

from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

LEVEL = 0.95


@dataclass(frozen=True)
class Paired:
    """The mean of `a - b` over `n` common seeds, half its 95 % interval, and for how many seeds `a` is the larger."""

    mean: float
    half: float
    n: int
    better: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0; never with fewer than two seeds."""
        return abs(self.mean) > self.half


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the 95 % t-interval: t(0.975, n - 1) * s / sqrt(n). Half is nan for one value, both for none."""
    if not values:
        return math.nan, math.nan
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return fmean(values), math.nan
    quantile = float(cast(Any, stats).t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return fmean(values), quantile * stdev(values) / math.sqrt(len(values))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """The differences `a - b` by seed, over the seeds that both have."""
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    mean, half = interval(differences)
    return Paired(mean, half, len(differences), sum(difference > 0 for difference in differences))
