"""How a metric is shown, and which direction is better."""

import math
from dataclasses import dataclass

_PERCENT = ("accuracy", "error", "ece")
_LOWER = ("nll", "ece", "error", "loss", "brier", "perplexity", "rmse", "bits_per_byte")


@dataclass(frozen=True)
class Metric:
    """A metric by name: the factor and decimals it is shown with, and whether lower is better."""

    name: str

    @property
    def lower(self) -> bool:
        """Whether lower is better."""
        return self.name in _LOWER

    @property
    def percent(self) -> bool:
        """Whether it is a fraction, shown in per cent."""
        return self.name in _PERCENT

    @property
    def factor(self) -> float:
        """What the recorded value is multiplied with to be shown."""
        return 100.0 if self.percent else 1.0

    @property
    def heading(self) -> str:
        """The name with its unit, as a heading says it."""
        spelled = self.name.upper() if self.name in ("nll", "ece") else self.name
        return f"{spelled} (%)" if self.percent else spelled

    def show(self, value: float, *, sign: bool = False) -> str:
        """The value in the shown unit: `85.04` for an accuracy of 0.8504."""
        shown = value * self.factor
        decimals = 2 if self.percent else 4
        return f"{shown:{'+' if sign else ''}.{decimals}f}"

    def show_interval(self, mean: float, half: float, *, sign: bool = False) -> str:
        """`85.04 ±0.21`, without the second number where there is no interval."""
        return self.show(mean, sign=sign) + (f" ±{self.show(half)}" if math.isfinite(half) else "")
