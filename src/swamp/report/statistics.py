"""Means over seeds with 95 % t-intervals, paired differences, and how a metric is written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, cast

from swamp.training.own_evaluation import lower_is_better

LEVEL = 0.95
_PERCENT = ("accuracy", "error", "ece")


@dataclass(frozen=True)
class Paired:
    """Differences `a - b` over `n` common seeds.

    `half` is the half-width of the 95 % interval of the mean; `better` counts the seeds where `a` is larger.
    """

    mean: float
    half: float
    n: int
    better: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0; always false with fewer than two seeds."""
        return abs(self.mean) > self.half


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % t-interval: t(0.975, n - 1) * s / sqrt(n).

    The half-width is NaN for one value and for values that are not finite; both are NaN for no value.

    Examples:
        >>> mean, half = interval([1.0, 2.0, 3.0])
        >>> mean, round(half, 4)
        (2.0, 2.4841)
    """
    if not values:
        return math.nan, math.nan
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return fmean(values), math.nan
    # Imported here, because a training needs none of it. scipy.stats.t.ppf computes the same, but takes a second.
    from scipy import special  # pyright: ignore[reportMissingTypeStubs]

    quantile = float(cast(Any, special).stdtrit(len(values) - 1, (1 + LEVEL) / 2))
    return fmean(values), quantile * stdev(values) / math.sqrt(len(values))


def drawn_interval(values: Sequence[float]) -> tuple[float, float]:
    """As `interval`, without a half-width for two values: it is about 13 times their distance from the mean."""
    mean, half = interval(values)
    return mean, half if len(values) > 2 else math.nan


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """Return the differences `a - b` over the seeds that both have; `a` and `b` map a seed to a value."""
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    mean, half = interval(differences)
    return Paired(mean, half, len(differences), sum(difference > 0 for difference in differences))


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


@dataclass(frozen=True)
class ReportMetric:
    """A metric by name: its unit, its decimals, and whether lower is better."""

    name: str
    lower_is_better: bool | None = None
    """None: judged by its name."""

    @property
    def lower(self) -> bool:
        """Whether lower is better."""
        return lower_is_better(self.name) if self.lower_is_better is None else self.lower_is_better

    @property
    def percent(self) -> bool:
        """Whether the metric is a fraction, shown in per cent."""
        return self.name in _PERCENT

    @property
    def factor(self) -> float:
        """The factor from the recorded to the shown value."""
        return 100.0 if self.percent else 1.0

    @property
    def heading(self) -> str:
        """The name with its unit."""
        name = self.name.upper() if self.name in ("nll", "ece") else self.name
        return f"{name} (%)" if self.percent else name

    @property
    def difference_unit(self) -> str:
        """The unit of a difference."""
        return "points" if self.percent else self.name

    def show(self, value: float, *, sign: bool = False) -> str:
        """The value in the shown unit: `85.04` for an accuracy of 0.8504."""
        decimals = 2 if self.percent else 4
        return f"{value * self.factor:{'+' if sign else ''}.{decimals}f}"

    def show_interval(self, mean: float, half: float, *, sign: bool = False) -> str:
        """`85.04 ±0.21`, without the second number where there is no interval."""
        return self.show(mean, sign=sign) + (f" ±{self.show(half)}" if math.isfinite(half) else "")
