"""The input of all figures: runs of one task and model, their comparison, and their analyses."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from swamp.analysis.analysis_tasks import read_analysis
from swamp.report.comparison import Comparison, compare
from swamp.report.figure_description import Axis, Curve, Number, interval_curve, sparsity_axis
from swamp.report.run_records import RunRecord, as_float, label_runs, read_run
from swamp.report.statistics import drawn_interval

MOST_RUNS = 4
"""The most runs that have figures of their own: their cycles, trajectories and landscapes."""
_MOST_COLORED = 8
"""Above this number of methods, the best are coloured and the others grey."""
_REASONS = ("skipped", "left_out")
"""A record with one of these keys has no values: the key holds the reason."""

Quantity = Callable[["RunAnalyses"], Iterable[tuple[int, float, object]]]
"""A quantity of a run: (cycle, sparsity, value) triples."""


@dataclass(frozen=True)
class RunAnalyses:
    """A run with its label, a unique name, and the records of its analyses by key."""

    run: RunRecord
    label: str
    """The same for all seeds of a method."""
    name: str
    records: Mapping[str, Mapping[str, Any]]

    def cycles(self, analysis: str, part: str = "") -> list[Mapping[str, Any]]:
        """The records `<analysis>/cycle-…/<part>` in the order of cycles, without those that have no values."""
        parts = ((key.split("/"), record) for key, record in self.records.items())
        found = [r for names, r in parts if names[0] == analysis and len(names) > 1 and "/".join(names[2:]) == part]
        whole = (record for record in found if "cycle" in record and not any(name in record for name in _REASONS))
        return sorted(whole, key=lambda record: record["cycle"])

    def some_cycles(self, analysis: str, part: str = "") -> list[Mapping[str, Any]]:
        """At most three of the cycles: the first, the middle and the last."""
        found = self.cycles(analysis, part)
        return found if len(found) <= 3 else [found[0], found[len(found) // 2], found[-1]]

    def last_cycle(self, analysis: str, part: str = "", *, key: str | None = None) -> Mapping[str, Any] | None:
        """The record of the last cycle, or of the last one that has a value at `key`; None if there is none."""
        found = [record for record in self.cycles(analysis, part) if key is None or record.get(key)]
        return found[-1] if found else None

    def series(
        self, analysis: str, *path: str, part: str = "", of: Callable[[Any], Number] | None = None
    ) -> Iterable[tuple[int, float, object]]:
        """(cycle, sparsity, value) of each cycle; `path` holds the keys that lead to it. of: applied to each value."""
        for record in self.cycles(analysis, part):
            value: Any = record
            for key in path:
                value = cast("Mapping[str, Any]", value).get(key) if isinstance(value, Mapping) else None
            yield record["cycle"], record["sparsity"], of(value) if of else value

    def missing_reasons(self, analysis: str) -> list[str]:
        """The reasons why records of the analysis have no values, each once."""
        records = [record for key, record in self.records.items() if key.split("/")[0] == analysis]
        return list(dict.fromkeys(str(record[name]) for record in records for name in _REASONS if name in record))

    def title(self, record: Mapping[str, Any]) -> str:
        """The name of the run and the sparsity of a record."""
        return f"{self.name}, {100 * record['sparsity']:.1f} % sparse"


@dataclass(frozen=True)
class ReportData:
    """Runs of one task and model with their analyses, and their comparison."""

    runs: tuple[RunAnalyses, ...]
    comparison: Comparison

    @classmethod
    def read(cls, paths: Sequence[Path], *, metric: str = "") -> "ReportData":
        """Read runs and their analyses.

        Args:
            paths: run directories.
            metric: a metric that the runs measured; empty: accuracy, or else their first.

        Raises:
            SwampError: see `read_run`, `compare` and `read_analysis`.
        """
        records = [read_run(path) for path in paths]
        comparison = compare(records, metric=metric)
        labels, _ = label_runs(records)
        runs: list[RunAnalyses] = []
        for record, label in zip(records, labels, strict=True):
            name = f"{label}, seed {record.config['seed']}" if labels.count(label) > 1 else label
            analyses = {line["key"]: line for line in read_analysis(record.directory)}
            runs.append(RunAnalyses(record, label, name, analyses))
        return cls(tuple(runs), comparison)

    def color(self, label: str) -> int:
        """The label's index in the palette, the same in every figure."""
        return color_of(self.comparison, label)

    def analysed(self, analysis: str) -> list[RunAnalyses]:
        """The runs that have a record of the analysis."""
        return [run for run in self.runs if any(key.split("/")[0] == analysis for key in run.records)]

    def one_per_label(self, analysis: str) -> list[RunAnalyses]:
        """The first analysed run of each label, at most four: it represents the other seeds."""
        first: dict[str, RunAnalyses] = {}
        for run in self.analysed(analysis):
            first.setdefault(run.label, run)
        return list(first.values())[:MOST_RUNS]

    @cached_property
    def densities(self) -> tuple[float, ...]:
        """The densities of the comparison's rows."""
        return tuple(row.density for row in self.comparison.rows)

    @property
    def axis(self) -> Axis:
        """The sparsity axis of all rows."""
        return sparsity_axis(self.densities)

    def trend(self, values: Quantity, name: str = "", *, factor: float = 1.0, **options: Any) -> list[Curve]:
        """A curve for each label: the mean over its runs at each cycle, with a 95 % interval from three runs on.

        Args:
            values: the quantity to draw.
            name: appended to the label.
            factor: multiplies the values.
            options: other fields of `Curve`.
        """
        curves: list[Curve] = []
        for label in self.comparison.labels:
            at: dict[int, list[tuple[float, float]]] = {}
            for run in self.runs:
                if run.label == label:
                    for cycle, sparsity, value in values(run):
                        if (measured := as_float(value)) is not None:
                            at.setdefault(cycle, []).append((1 - sparsity, measured))
            cycles = [at[cycle] for cycle in sorted(at)]
            densities = [fmean(density for density, _ in pairs) for pairs in cycles]
            means = [drawn_interval([value for _, value in pairs]) for pairs in cycles]
            if at:
                full = f"{label}: {name}" if name else label
                curves.append(interval_curve(full, densities, means, self.color(label), factor=factor, **options))
        return curves


def highlighted(comparison: Comparison) -> tuple[str, ...]:
    """All methods; of more than eight, the baseline and the methods that beat most others, mean over sparsities."""
    if len(comparison.labels) <= _MOST_COLORED:
        return comparison.labels
    sign = -1 if comparison.report_metric.lower else 1
    beaten: dict[str, list[float]] = {label: [] for label in comparison.labels}
    for row in comparison.rows:
        for label, cell in row.cells.items():
            others = [other.mean for name, other in row.cells.items() if name != label]
            beaten[label].append(fmean(sign * cell.mean > sign * mean for mean in others) if others else 0.0)
    # Divided by all rows, not by the method's own: a method that is good at one sparsity alone is not the best.
    score = {label: sum(shares) / len(comparison.rows) for label, shares in beaten.items()}
    first = [label for label in comparison.labels if label == comparison.baseline]
    best = first + sorted((label for label in score if label not in first), key=lambda label: -score[label])
    return tuple(label for label in comparison.labels if label in best[: _MOST_COLORED - 1])


def color_of(comparison: Comparison, label: str) -> int:
    """The label's index in the palette, the same in every figure: highlighted labels are first."""
    first = highlighted(comparison)
    return [*first, *(other for other in comparison.labels if other not in first)].index(label)


def values_at(record: Mapping[str, Any], name: str) -> list[Any]:
    """The list under `name` in a record; empty if the value is missing or null."""
    value = record.get(name)
    return cast("list[Any]", value) if isinstance(value, list) else []


def percent(values: Iterable[float | None]) -> tuple[float | None, ...]:
    """Fractions in per cent."""
    return tuple(None if value is None else 100 * value for value in values)
