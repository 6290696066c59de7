"""Runs with what was found out about them: what the pictures are made of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from swamp.analysis import read_analysis
from swamp.report.compare import compare
from swamp.report.comparison import Comparison
from swamp.report.label import label_runs
from swamp.report.picture import Axis, Curve, Number
from swamp.report.plot import density_ticks
from swamp.report.read import RunRecord, number, read_run
from swamp.report.statistics import interval

MOST_RUNS = 4
"""So many runs get pictures of their own: of their cycles, paths and landscapes."""
_MOST_CYCLES = 3
_LEFT_OUT = ("skipped", "left_out")
"""A record with one of these says why it has no values."""

Values = Callable[["Looked"], Iterable[tuple[int, float, object]]]
"""What a run says cycle by cycle: cycle, sparsity, value."""


@dataclass(frozen=True)
class Looked:
    """A run, the label that it shares with its other seeds, a name of its own, and its analyses by key."""

    run: RunRecord
    label: str
    name: str
    analyses: Mapping[str, Mapping[str, Any]]

    def of(self, analysis: str, what: str = "") -> list[Mapping[str, Any]]:
        """The records '<analysis>/cycle-…', with `/<what>` at the end of their keys, by cycle."""
        parts = ((key.split("/"), record) for key, record in self.analyses.items())
        found = [r for part, r in parts if part[0] == analysis and len(part) > 1 and "/".join(part[2:]) == what]
        whole = (r for r in found if "cycle" in r and not any(name in r for name in _LEFT_OUT))
        return sorted(whole, key=lambda record: record["cycle"])

    def left_out(self, analysis: str) -> list[str]:
        """Why records of the analysis are empty, each reason once."""
        records = [record for key, record in self.analyses.items() if key.split("/")[0] == analysis]
        reasons = (str(record[name]) for record in records for name in _LEFT_OUT if name in record)
        return list(dict.fromkeys(reasons))

    def some(self, analysis: str, what: str = "") -> list[Mapping[str, Any]]:
        """At most three of them: the first, the middle and the last."""
        found = self.of(analysis, what)
        if len(found) <= _MOST_CYCLES:
            return found
        return [found[0], found[len(found) // 2], found[-1]]


@dataclass(frozen=True)
class Evidence:
    """Runs of one task and model beside each other, and each looked into."""

    looked: tuple[Looked, ...]
    comparison: Comparison

    @classmethod
    def read(cls, paths: Sequence[Path], *, metric: str = "") -> "Evidence":
        """Read runs and their analyses. Raises SwampError as `read_run`, `compare` and `read_analysis` do."""
        runs = [read_run(path) for path in paths]
        comparison = compare(runs, metric=metric)
        labels, _ = label_runs(runs)
        looked: list[Looked] = []
        for run, label in zip(runs, labels, strict=True):
            name = f"{label}, seed {run.config['seed']}" if labels.count(label) > 1 else label
            analyses = {record["key"]: record for record in read_analysis(run.directory)}
            looked.append(Looked(run, label, name, analyses))
        return cls(tuple(looked), comparison)

    def colour(self, label: str) -> int:
        """The label's number among all: its colour in every picture."""
        return self.comparison.labels.index(label)

    def with_(self, analysis: str) -> list[Looked]:
        """The runs that have a record of the analysis."""
        return [looked for looked in self.looked if any(key.split("/")[0] == analysis for key in looked.analyses)]

    def firsts(self, analysis: str) -> list[Looked]:
        """The first run of each label that has the analysis, at most four: what one run says stands for its seeds."""
        first: dict[str, Looked] = {}
        for looked in self.with_(analysis):
            first.setdefault(looked.label, looked)
        return list(first.values())[:MOST_RUNS]

    @cached_property
    def densities(self) -> tuple[float, ...]:
        """Of the comparison's rows."""
        return tuple(row.density for row in self.comparison.rows)

    @property
    def axis(self) -> Axis:
        """Sparsity, on the scale of the weights that are left."""
        return sparsity_axis(self.densities)

    def trend(self, values: Values, what: str = "", *, factor: float = 1.0, **style: Any) -> list[Curve]:
        """A curve for each label: the mean over its runs at each cycle, with a 95 % interval where there are some."""
        curves: list[Curve] = []
        for label in self.comparison.labels:
            at: dict[int, list[tuple[float, float]]] = {}
            for looked in self.looked:
                if looked.label == label:
                    for cycle, sparsity, value in values(looked):
                        if (measured := number(value)) is not None:
                            at.setdefault(cycle, []).append((1 - sparsity, factor * measured))
            if at:
                name = f"{label}: {what}" if what else label
                curves.append(_curve(name, [at[cycle] for cycle in sorted(at)], self.colour(label), style))
        return curves


def sparsity_axis(densities: Sequence[float]) -> Axis:
    """Sparsity, on the scale of the weights that are left."""
    most, least = max(densities), min(densities)
    margin = (most / least) ** 0.03 if most > least else 1.1
    ticks = tuple((density, f"{100 * (1 - density):.4g}") for density in density_ticks(densities))
    return Axis("sparsity (%)", log=True, limits=(most * margin, least / margin), ticks=ticks)


def many(record: Mapping[str, Any], name: str) -> list[Any]:
    """A list of the record; none where it has null or nothing there."""
    value = record.get(name)
    return cast("list[Any]", value) if isinstance(value, list) else []


def sparse(density: float) -> str:
    """A density as notes name it."""
    return f"{100 * (1 - density):.2f} %"


def _curve(name: str, cycles: Sequence[Sequence[tuple[float, float]]], colour: int, style: Mapping[str, Any]) -> Curve:
    x = tuple(fmean(density for density, _ in pairs) for pairs in cycles)
    each = [interval([value for _, value in pairs]) for pairs in cycles]
    banded = all(half == half for _, half in each)
    low: tuple[Number, ...] = tuple(mean - half for mean, half in each) if banded else ()
    high: tuple[Number, ...] = tuple(mean + half for mean, half in each) if banded else ()
    y = tuple(mean for mean, _ in each)
    return Curve(name, x, y, colour, low=low, high=high, notes=tuple(map(sparse, x)), **style)
