"""The values a comparison is made of. All metrics are as recorded (an accuracy is a fraction), none is rounded."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from swamp.report.statistics import Paired


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
    seconds: float
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


@dataclass(frozen=True)
class Row:
    """A sparsity: cells and paired differences to the baseline by label, where there are any, and the best labels."""

    density: float
    density_all: float
    cells: Mapping[str, Cell]
    differences: Mapping[str, Paired]
    best: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """Of the prunable weights."""
        return 1 - self.density


@dataclass(frozen=True)
class Cost:
    """What a method's whole run took: means over its seeds. `cycles` is the fewest and the most finished cycles."""

    seeds: int
    particles: int
    cycles: tuple[int, int]
    steps: float
    samples: float
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Runs of one task and model, method beside method at each sparsity, densest row first."""

    task: str
    model: str
    metric: str
    split: str
    labels: tuple[str, ...]
    baseline: str
    rows: tuple[Row, ...]
    costs: Mapping[str, Cost]
    dense: float | None
    """The baseline's mean at cycle 0."""
    comparisons: int
    """How many paired differences were taken."""
    notes: tuple[str, ...]
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values that JSON can hold; numbers that are not finite become None."""
        plain = cast(dict[str, Any], _plain(asdict(self)))
        for row, source in zip(plain["rows"], self.rows, strict=True):
            row["sparsity"] = source.sparsity
        return plain


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast(list[object], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
