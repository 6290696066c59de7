"""Runs compared by method: matched sparsities, means over seeds, and differences paired by seed."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, groupby
from statistics import fmean
from typing import Any, Literal, cast

from swamp.errors import SwampError, plural, shortened, unknown
from swamp.report.cost import (
    DENSE,
    CostRank,
    CostUnit,
    ModelCost,
    RunCost,
    cost_unit,
    mean_cost,
    model_cost,
    rank_by_cost,
    run_cost,
)
from swamp.report.other_differences import other_differences, require_same_data
from swamp.report.run_records import SPLITS, RunRecord, as_float, label_runs, measured, show
from swamp.report.statistics import Paired, ReportMetric, interval, mean_known, paired
from swamp.runs.directory import replace_nonfinite
from swamp.runs.read import TOLERANCE

At = Literal["sparsity", "equal-cost", "equal-time"]
"""Compare methods at equal sparsity; or also at equal cost, or at equal time with a worker for each particle."""
BEST = "best"
"""The baseline that is the best method of each sparsity."""


@dataclass(frozen=True)
class CyclePoint:
    """One cycle of one run; `row` is the index of its row in the comparison."""

    label: str
    seed: int
    cycle: int
    row: int
    density: float
    density_all: float
    value: float | None
    n: int
    """The number of particles of the cycle; `particles` has the metric of those in which it was measured."""
    particles: tuple[float, ...]
    barrier: float | None
    steps: int
    samples: int
    flops: float | None
    seconds: float
    total: ModelCost
    """The cost of this model in all; steps, samples, flops and seconds are those of its cycle."""
    metrics: Mapping[str, float]
    """Every metric of every split by dotted name (`test.nll`); `particles.test.nll` is the mean over particles."""


@dataclass(frozen=True)
class CellStatistics:
    """A method at one sparsity: the mean over `n` seeds and the half-width of its 95 % interval."""

    mean: float
    half: float
    n: int
    particles: float | None
    """The mean of the single particles."""
    barrier: float | None
    total: ModelCost
    """The cost of the model, mean over seeds."""


@dataclass(frozen=True)
class SparsityRow:
    """One sparsity: cells and paired differences to the baseline by label, and the best labels.

    A label is best if it has a common seed with each other label, and none is better over the seeds that both have.
    """

    density: float
    density_all: float
    cells: Mapping[str, CellStatistics]
    differences: Mapping[str, Paired]
    best: tuple[str, ...]
    to_best: Mapping[str, Paired]
    """Paired differences to the first of the best labels, by label."""
    cost_ranking: tuple[CostRank, ...]
    """All methods of the row, the cheapest first."""

    @property
    def sparsity(self) -> float:
        """The sparsity of the prunable weights."""
        return 1 - self.density

    @property
    def tied(self) -> tuple[str, ...]:
        """The labels that are not significantly different from the best: the paired 95 % interval includes 0."""
        return tuple(
            label
            for label, difference in self.to_best.items()
            if math.isfinite(difference.half) and not difference.excludes_zero
        )


@dataclass(frozen=True)
class Comparison:
    """Runs of one task and model, compared by method at each sparsity, the densest row first.

    All metrics are as recorded: an accuracy is a fraction, and nothing is rounded.
    """

    task: str
    model: str
    metric: str
    lower_is_better: bool
    split: str
    labels: tuple[str, ...]
    baseline: str
    """A label, or `best`: differences are then to each row's best label."""
    unit: CostUnit
    rows: tuple[SparsityRow, ...]
    costs: Mapping[str, RunCost]
    dense: float | None
    """The mean of `dense_label` at density 1: of the baseline, or of the first label that has a dense model."""
    dense_label: str | None
    dense_by_seed: Mapping[int, float]
    """The values of which `dense` is the mean."""
    notes: tuple[str, ...]
    points: tuple[CyclePoint, ...]

    @property
    def differences(self) -> list[Paired]:
        """All paired differences to the baseline."""
        return [difference for row in self.rows for difference in row.differences.values()]

    @property
    def heading(self) -> str:
        """The split and the metric with its unit: `test accuracy (%)`."""
        return f"{self.split} {self.report_metric.heading}"

    @property
    def report_metric(self) -> ReportMetric:
        """The metric, and whether lower is better."""
        return ReportMetric(self.metric, self.lower_is_better)

    def to_json(self) -> dict[str, Any]:
        """Plain values that JSON can hold; numbers that are not finite become None."""
        values = replace_nonfinite(asdict(self))
        for row, source in zip(values["rows"], self.rows, strict=True):
            row["sparsity"] = source.sparsity
            row["tied"] = list(source.tied)
        return values


def compare(
    runs: Sequence[RunRecord],
    *,
    metric: str = "",
    split: str = "test",
    baseline: str | None = None,
    sparsities: Sequence[float] = (),
    at: At = "sparsity",
) -> Comparison:
    """Compare runs of one task and one model.

    Args:
        runs: finished or unfinished runs with at least one finished cycle.
        metric: a metric that the runs measured; empty: accuracy, or else their first.
        split: train, validation or test.
        baseline: the label that differences are taken to; None: `imp` if present, else the first label; `best`: the
            best mean of each sparsity.
        sparsities: the rows to keep, as fractions of the prunable weights; empty: all. Costs are those of whole runs.
        at: equal-time counts costs as the time of training with a worker for each particle.

    Returns:
        The comparison. Cycles whose densities differ by at most 0.5 % share a row.

    Raises:
        SwampError: the runs have several tasks, models or test sets, a run is given twice, or the metric, split,
            baseline or a sparsity does not exist.
    """
    metric = metric_of(runs, metric, split)
    lower = lower_better(runs, metric)
    each, notes = label_runs(runs)
    labels = tuple(dict.fromkeys(each))
    first = _first(baseline, labels)
    notes = [
        *other_differences(each, runs),
        *notes,
        *_diverged_notes(each, runs),
        *_not_finite_notes(each, runs, metric, split),
    ]
    notes += _unpaired_notes(each, runs)
    points = _points(sorted(zip(each, runs, strict=True), key=lambda pair: pair[0] != first), metric, split)
    dense_label, dense_by_seed = _dense(points)
    points = _at(points, sparsities)
    unit = cost_unit(runs, parallel=at == "equal-time")
    by_row = groupby(sorted(points, key=lambda point: point.row), key=lambda point: point.row)
    rows = tuple(_row(list(group), labels, baseline or first, ReportMetric(metric, lower), unit) for _, group in by_row)
    return Comparison(
        task=show(runs[0].config["task"]),
        model=show(runs[0].config["model"]),
        metric=metric,
        lower_is_better=lower,
        split=split,
        labels=labels,
        baseline=baseline or first,
        unit=unit,
        rows=rows,
        costs={label: run_cost([r for r, its in zip(runs, each, strict=True) if its == label]) for label in labels},
        dense=mean_known([*dense_by_seed.values()]),
        dense_label=dense_label,
        dense_by_seed=dense_by_seed,
        notes=tuple(notes),
        points=tuple(sorted(points, key=lambda point: (labels.index(point.label), point.seed, point.cycle))),
    )


def metric_of(runs: Sequence[RunRecord], metric: str, split: str) -> str:
    """Return `metric`; if it is empty, accuracy, or else the first metric that the runs measured.

    Raises:
        SwampError: the runs cannot share a table, or did not measure this metric or split.
    """
    if not runs:
        raise SwampError("no run was given to compare; give one or more run directories.")
    for key in ("task", "model"):
        first = {json.dumps(run.config[key], sort_keys=True): run for run in reversed(runs)}
        if len(first) > 1:
            found = ", ".join(sorted(f"{show(run.config[key])} ({run.path})" for run in first.values()))
            raise SwampError(f"runs of different {key}s cannot share a table: {found}. Compare one {key} at a time.")
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    require_same_data(runs, split)
    there = (name for run in runs for cycle in run.cycles for name, _ in _measured(cycle, (split,)))
    known = [name.partition(".")[2] for name in dict.fromkeys(there)]
    if not known:
        raise SwampError(
            f"none of the runs measured the {split} split; choose one of {', '.join(SPLITS)}: swamp compare --split."
            + (" (Trials of swamp tune do not read test data.)" if split == "test" else "")
        )
    if metric and metric not in known:
        raise unknown("metric", metric, known)
    return metric or ("accuracy" if "accuracy" in known else known[0])


def lower_better(runs: Sequence[RunRecord], metric: str) -> bool:
    """Whether a lower value is better: as the task says of its first metric, else judged by the name."""
    for run in runs:
        measured_first = next((name for name, _ in _measured(run.cycles[0], ("test", "validation"))), "")
        if run.higher_is_better is not None and measured_first.partition(".")[2] == metric:
            return not run.higher_is_better
    return ReportMetric(metric).lower


def _first(baseline: str | None, labels: Sequence[str]) -> str:
    """The label from which the rows take their densities: the baseline if it is a label."""
    if baseline is not None and baseline in labels:
        return baseline
    if baseline not in (None, BEST):
        raise unknown("baseline", baseline, (*labels, BEST))
    return "imp" if "imp" in labels else labels[0]


def _measured(holder: Mapping[str, Any], splits: Iterable[str] = SPLITS) -> Iterator[tuple[str, float]]:
    for split in splits:
        metrics: Mapping[str, object] = holder.get(split) or {}
        for name in metrics:
            if (value := measured(metrics, name)) is not None:
                yield f"{split}.{name}", value


def _points(runs: Sequence[tuple[str, RunRecord]], metric: str, split: str) -> list[CyclePoint]:
    # The baseline is first: rows have its densities, and other methods are matched to them.
    densities: list[float] = []
    placed: list[tuple[int, str, RunRecord, Mapping[str, Any]]] = []
    for label, run in runs:
        # A row takes one cycle of a run, also if the run kept its density from one cycle to the next.
        free = set(range(len(densities)))
        for cycle in run.cycles:
            density = float(cycle["density"]["prunable"])
            near = [row for row in free if abs(densities[row] - density) <= TOLERANCE * density]
            if near:
                row = min(near, key=lambda row: (abs(densities[row] - density), row))
                free.remove(row)
            else:
                row = len(densities)
                densities.append(density)
            placed.append((row, label, run, cycle))
    order = sorted(range(len(densities)), key=lambda row: -densities[row])
    rank = {row: index for index, row in enumerate(order)}
    return [_point(label, run, cycle, rank[row], f"{split}.{metric}") for row, label, run, cycle in placed]


def _point(label: str, run: RunRecord, cycle: Mapping[str, Any], row: int, name: str) -> CyclePoint:
    metrics = dict(_measured(cycle))
    particles = [dict(_measured(particle)) for particle in cycle["particles"]]
    for key in dict.fromkeys(key for particle in particles for key in particle):
        metrics[f"particles.{key}"] = fmean(particle[key] for particle in particles if key in particle)
    barrier: Mapping[str, object] = cycle.get("barrier") or {}
    barriers = [as_float(value) for value in barrier.values()]
    return CyclePoint(
        label=label,
        seed=int(run.config["seed"]),
        cycle=cycle["cycle"],
        row=row,
        density=float(cycle["density"]["prunable"]),
        density_all=float(cycle["density"]["all"]),
        value=metrics.get(name),
        n=len(particles),
        particles=tuple(particle[name] for particle in particles if name in particle),
        # null: NaN.
        barrier=None if None in barriers else max(cast("list[float]", barriers), default=None),
        steps=cycle["steps"],
        samples=cycle["samples"],
        flops=cycle["flops"],
        seconds=float(cycle["seconds"]),
        total=model_cost(cycle["total"]),
        metrics=metrics,
    )


def _dense(points: Sequence[CyclePoint]) -> tuple[str | None, dict[int, float]]:
    # The baseline's points are first. If a run was dense for several cycles, the first one counts.
    for point in points:
        if point.density >= DENSE and point.value is not None:
            return point.label, _by_seed([other for other in points if other.row == point.row], point.label)
    return None, {}


def _at(points: Sequence[CyclePoint], sparsities: Sequence[float]) -> list[CyclePoint]:
    if not sparsities:
        return list(points)
    densities = {point.row: point.density for point in reversed(points)}
    kept: set[int] = set()
    for sparsity in sparsities:
        wanted = 1 - sparsity
        near = {row for row, density in densities.items() if abs(density - wanted) <= TOLERANCE * wanted}
        if not near:
            there = ", ".join(f"{1 - densities[row]:.4g}" for row in sorted(densities))
            raise SwampError(f"no run has sparsity {sparsity:g} (a fraction of prunable weights); there is {there}.")
        kept |= near
    rank = {row: index for index, row in enumerate(sorted(kept))}
    return [replace(point, row=rank[point.row]) for point in points if point.row in rank]


def _row(
    points: Sequence[CyclePoint], labels: Sequence[str], baseline: str, metric: ReportMetric, unit: CostUnit
) -> SparsityRow:
    values = {label: _by_seed(points, label) for label in labels}
    cells = {
        label: _cell([point for point in points if point.label == label and point.value is not None])
        for label in labels
        if values[label]
    }
    means = {label: cell.mean for label, cell in cells.items()}
    costs = {label: unit.of(cell.total) or 0.0 for label, cell in cells.items()}
    best = _best(means, values, metric)
    to_best = _differences(values, best[0] if best else None)
    differences = to_best if baseline == BEST else _differences(values, baseline)
    ranking = rank_by_cost(costs, means, values, metric)
    return SparsityRow(points[0].density, points[0].density_all, cells, differences, best, to_best, ranking)


def _differences(values: Mapping[str, Mapping[int, float]], baseline: str | None) -> dict[str, Paired]:
    if baseline is None:
        return {}
    base = values[baseline]
    return {label: paired(its, base) for label, its in values.items() if label != baseline and its.keys() & base.keys()}


def _by_seed(points: Iterable[CyclePoint], label: str) -> dict[int, float]:
    return {point.seed: point.value for point in points if point.label == label and point.value is not None}


def _cell(points: Sequence[CyclePoint]) -> CellStatistics:
    mean, half = interval([cast(float, point.value) for point in points])
    own = mean_known([fmean(point.particles) if point.particles else None for point in points])
    barrier = mean_known([point.barrier for point in points])
    return CellStatistics(mean, half, len(points), own, barrier, mean_cost([point.total for point in points]))


def _best(
    means: Mapping[str, float], values: Mapping[str, Mapping[int, float]], metric: ReportMetric
) -> tuple[str, ...]:
    finite = [label for label, mean in means.items() if math.isfinite(mean)]
    if len(means) < 2:
        return ()
    sign = -1 if metric.lower else 1

    def unbeaten(label: str) -> bool:
        differences = [paired(values[label], values[other]) for other in finite if other != label]
        return all(difference.n and sign * difference.mean >= 0 for difference in differences)

    return tuple(label for label in finite if unbeaten(label))


def _unpaired_notes(labels: Sequence[str], runs: Sequence[RunRecord]) -> list[str]:
    """The pairs of labels that cannot be compared, as no seed has both."""
    seeds: dict[str, set[int]] = {}
    for label, run in zip(labels, runs, strict=True):
        seeds.setdefault(label, set()).add(int(run.config["seed"]))
    pairs = [f"{one} and {other}" for one, other in combinations(seeds, 2) if not seeds[one] & seeds[other]]
    return [
        f"Not compared, as means of different seeds differ by chance: {shortened(pairs)} have no common seed."
    ] * bool(pairs)


def _diverged_notes(labels: Sequence[str], runs: Sequence[RunRecord]) -> list[str]:
    """For each label, the diverged trainings, their learning rate, and whether they were restarted or dropped."""

    def diverged(cycle: Mapping[str, Any]) -> Iterator[str]:
        for event in cycle.get("divergences") or ():
            where = "the ticket" if event["cycle"] is None else f"cycle {event['cycle']}, particle {event['particle']}"
            then = "left out of the mean" if event["again"] is None else f"trained again with {event['again']:g}"
            yield f"{where} at learning rate {event['lr']:g}, {then}"

    return [
        f"{label}: {plural(len(found), 'training')} diverged (loss or weights not finite): {shortened(found)}."
        for label, found in _by_label(labels, runs, diverged).items()
    ]


def _not_finite_notes(labels: Sequence[str], runs: Sequence[RunRecord], metric: str, split: str) -> list[str]:
    """For each label the cycles whose metric is NaN or infinite: the mean over seeds is not finite either."""

    def not_finite(cycle: Mapping[str, Any]) -> Iterator[str]:
        holders = {"": cycle, **{f", particle {i}": one for i, one in enumerate(cycle["particles"])}}
        for name, holder in holders.items():
            metrics: Mapping[str, object] = holder.get(split) or {}
            value = measured(metrics, metric)
            if value is not None and not math.isfinite(value):
                yield f"cycle {cycle['cycle']}{name}"

    return [
        f"{label}: {split} {metric} was NaN or infinite {plural(len(found), 'time')}, and so is a mean with it: "
        f"{shortened(found)}."
        for label, found in _by_label(labels, runs, not_finite).items()
    ]


def _by_label(
    labels: Sequence[str], runs: Sequence[RunRecord], events: Callable[[Mapping[str, Any]], Iterator[str]]
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for label, run in zip(labels, runs, strict=True):
        for cycle in run.cycles:
            for event in events(cycle):
                found.setdefault(label, []).append(f"seed {run.config['seed']}, {event}")
    return found
