"""The values a comparison is made of. All metrics are as recorded (an accuracy is a fraction), none is rounded."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from swamp.report.cost import Cost, Total, Unit
from swamp.report.statistics import Paired

At = Literal["sparsity", "equal-cost"]
"""What a comparison lines methods up by."""

BEST = "best"
"""The baseline that is each sparsity's best method."""


@dataclass(frozen=True)
class Point:
    """One cycle of one run; `row` is the index of the row that it belongs to."""

    label: str
    seed: int
    cycle: int
    row: int
    density: float
    density_all: float
    value: float | None
    n: int
    """How many particles the cycle had; `particles` has the metric of those that measured it."""
    particles: tuple[float, ...]
    barrier: float | None
    steps: int
    samples: int
    operations: float | None
    seconds: float
    total: Total
    """What getting this model took; steps, samples, operations and seconds are those of its cycle."""
    metrics: Mapping[str, float]
    """Every metric of every split by dotted name (`test.nll`); `particles.test.nll` is the mean over particles."""


@dataclass(frozen=True)
class Cell:
    """A method at a sparsity: mean over `n` seeds, half its 95 % interval, the particles' own mean, the barrier."""

    mean: float
    half: float
    n: int
    particles: float | None
    barrier: float | None
    total: Total
    """What the model took, mean over seeds."""


@dataclass(frozen=True)
class Rung:
    """A method's place among all at one sparsity by cost; `cost` is in the comparison's unit.

    `front`: no method at up to 1.05 times the cost has a better mean. `against`: the best of the others at up to 1.05
    times the cost, and `difference` to it paired by seed; None where no other costs so little, or without common seeds.
    """

    label: str
    cost: float
    front: bool
    against: str | None
    difference: Paired | None


@dataclass(frozen=True)
class Row:
    """A sparsity: cells and paired differences to the baseline by label, where there are any, and the best labels."""

    density: float
    density_all: float
    cells: Mapping[str, Cell]
    differences: Mapping[str, Paired]
    best: tuple[str, ...]
    to_best: Mapping[str, Paired]
    """Paired differences to the first of the best labels, by label."""
    ladder: tuple[Rung, ...]
    """All methods of the row, the cheapest first."""

    @property
    def sparsity(self) -> float:
        """Of the prunable weights."""
        return 1 - self.density

    @property
    def tied(self) -> tuple[str, ...]:
        """The labels that paired seeds cannot tell from the best: the 95 % interval of the difference includes 0."""
        return tuple(
            label
            for label, difference in self.to_best.items()
            if math.isfinite(difference.half) and not difference.excludes_zero
        )


@dataclass(frozen=True)
class Comparison:
    """Runs of one task and model, method beside method at each sparsity, densest row first."""

    task: str
    model: str
    metric: str
    split: str
    labels: tuple[str, ...]
    baseline: str
    """A label, or `best`: differences are then to each row's best label."""
    unit: Unit
    """What costs are measured in."""
    rows: tuple[Row, ...]
    costs: Mapping[str, Cost]
    dense: float | None
    """The mean of `dense_label` at density 1: the baseline where it was dense once, else the first label that was."""
    dense_label: str | None
    comparisons: int
    """How many paired differences to the baseline were taken."""
    notes: tuple[str, ...]
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values that JSON can hold; numbers that are not finite become None."""
        values = plain(asdict(self))
        for row, source in zip(values["rows"], self.rows, strict=True):
            row["sparsity"] = source.sparsity
            row["tied"] = list(source.tied)
        return values


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values that JSON can hold; numbers that are not finite become None."""
    return cast(dict[str, Any], _plain(values))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast(list[object], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
