"""Runs beside each other: labels, matched sparsities, means over seeds and differences paired by seed."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from statistics import fmean
from typing import Any, cast

from swamp.analysis.cross import TOLERANCE
from swamp.errors import SwampError, unknown
from swamp.report.comparison import BEST, Cell, Comparison, Point, Row
from swamp.report.cost import DENSE, Unit, cost_of, mean_total, total_of, unit_of
from swamp.report.label import label_runs, show
from swamp.report.ladder import ladder
from swamp.report.marks import broken_notes, unknown_notes
from swamp.report.metric import Metric
from swamp.report.read import SPLITS, RunRecord, measured, number
from swamp.report.statistics import Paired, interval, paired


def compare(
    runs: Sequence[RunRecord],
    *,
    metric: str = "",
    split: str = "test",
    baseline: str | None = None,
    sparsities: Sequence[float] = (),
) -> Comparison:
    """Compare runs of one task and model; differences are to `baseline` (`imp` if it is there, else the first label).

    metric: any that the runs measured; empty: accuracy, or the first they have. The baseline `best` is each
    sparsity's best mean. `sparsities` (fractions, of the prunable weights) are the rows to keep, all where none is
    given; the costs stay those of whole runs.
    Raises SwampError for runs of several tasks or models, for the same run given twice, and for a metric, split,
    baseline or sparsity that does not exist.
    """
    metric = metric_of(runs, metric, split)
    each, notes = label_runs(runs)
    labels = tuple(dict.fromkeys(each))
    first = _first(baseline, labels)
    notes = [*notes, *broken_notes(each, runs), *unknown_notes(each, runs, metric, split)]
    points = _points(sorted(zip(each, runs, strict=True), key=lambda pair: pair[0] != first), metric, split)
    dense_label, dense = _dense(points)
    points = _at(points, sparsities)
    unit = unit_of(runs)
    by_row = groupby(sorted(points, key=lambda point: point.row), key=lambda point: point.row)
    rows = tuple(_row(list(group), labels, baseline or first, metric, unit) for _, group in by_row)
    return Comparison(
        task=show(runs[0].config["task"]),
        model=show(runs[0].config["model"]),
        metric=metric,
        split=split,
        labels=labels,
        baseline=baseline or first,
        unit=unit,
        rows=rows,
        costs={label: cost_of([run for run, its in zip(runs, each, strict=True) if its == label]) for label in labels},
        dense=dense,
        dense_label=dense_label,
        comparisons=sum(len(row.differences) for row in rows),
        notes=tuple(notes),
        points=tuple(sorted(points, key=lambda point: (labels.index(point.label), point.seed, point.cycle))),
    )


def _first(baseline: str | None, labels: Sequence[str]) -> str:
    """The label whose densities rows carry: the baseline where it is one."""
    if baseline is not None and baseline in labels:
        return baseline
    if baseline not in (None, BEST):
        raise unknown("baseline", baseline, (*labels, BEST))
    return "imp" if "imp" in labels else labels[0]


def metric_of(runs: Sequence[RunRecord], metric: str, split: str) -> str:
    """The metric that is meant: empty is accuracy, or the first there is.

    Raises SwampError for runs that cannot share a table, and for a metric or split that they have not measured.
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
    there = (name for run in runs for cycle in run.cycles for name, _ in _measured(cycle, (split,)))
    known = [name.partition(".")[2] for name in dict.fromkeys(there)]
    if not known:
        raise SwampError(f"none of the runs measured the {split} split; choose one of {', '.join(SPLITS)}.")
    if metric and metric not in known:
        raise unknown("metric", metric, known)
    return metric or ("accuracy" if "accuracy" in known else known[0])


def _measured(holder: Mapping[str, Any], splits: Iterable[str] = SPLITS) -> Iterator[tuple[str, float]]:
    for split in splits:
        metrics: Mapping[str, object] = holder.get(split) or {}
        for name in metrics:
            if (value := measured(metrics, name)) is not None:
                yield f"{split}.{name}", value


def _points(runs: Sequence[tuple[str, RunRecord]], metric: str, split: str) -> list[Point]:
    # The baseline comes first, so that rows carry its densities and other methods are matched to them.
    densities: list[float] = []
    placed: list[tuple[int, str, RunRecord, Mapping[str, Any]]] = []
    for label, run in runs:
        # A row takes one cycle of a run, also where the run kept its density from one cycle to the next.
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


def _point(label: str, run: RunRecord, cycle: Mapping[str, Any], row: int, name: str) -> Point:
    metrics = dict(_measured(cycle))
    particles = [dict(_measured(particle)) for particle in cycle["particles"]]
    for key in dict.fromkeys(key for particle in particles for key in particle):
        metrics[f"particles.{key}"] = fmean(particle[key] for particle in particles if key in particle)
    barrier: Mapping[str, object] = cycle.get("barrier") or {}
    barriers = (number(value) for value in barrier.values())
    return Point(
        label=label,
        seed=int(run.config["seed"]),
        cycle=cycle["cycle"],
        row=row,
        density=float(cycle["density"]["prunable"]),
        density_all=float(cycle["density"]["all"]),
        value=metrics.get(name),
        n=len(particles),
        particles=tuple(particle[name] for particle in particles if name in particle),
        barrier=max((height for height in barriers if height is not None), default=None),
        steps=cycle["steps"],
        samples=cycle["samples"],
        operations=cycle["operations"],
        seconds=float(cycle["seconds"]),
        total=total_of(cycle["total"]),
        metrics=metrics,
    )


def _dense(points: Sequence[Point]) -> tuple[str | None, float | None]:
    # Points come baseline first; where a run stayed dense for some cycles, the first counts.
    for point in points:
        if point.density >= DENSE and point.value is not None:
            alike = (other for other in points if (other.label, other.row) == (point.label, point.row))
            return point.label, _mean(other.value for other in alike)
    return None, None


def _at(points: Sequence[Point], sparsities: Sequence[float]) -> list[Point]:
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


def _row(points: Sequence[Point], labels: Sequence[str], baseline: str, metric: str, unit: Unit) -> Row:
    values = {label: _by_seed(points, label) for label in labels}
    cells = {
        label: _cell([point for point in points if point.label == label and point.value is not None])
        for label in labels
        if values[label]
    }
    best = _best(cells, metric)
    to_best = _differences(values, best[0] if best else None)
    differences = to_best if baseline == BEST else _differences(values, baseline)
    density, density_all = points[0].density, points[0].density_all
    return Row(density, density_all, cells, differences, best, to_best, ladder(cells, values, unit, Metric(metric)))


def _differences(values: Mapping[str, Mapping[int, float]], baseline: str | None) -> dict[str, Paired]:
    if baseline is None:
        return {}
    base = values[baseline]
    return {label: paired(its, base) for label, its in values.items() if label != baseline and its.keys() & base.keys()}


def _by_seed(points: Iterable[Point], label: str) -> dict[int, float]:
    return {point.seed: point.value for point in points if point.label == label and point.value is not None}


def _cell(points: Sequence[Point]) -> Cell:
    mean, half = interval([cast(float, point.value) for point in points])
    own = _mean([fmean(point.particles) if point.particles else None for point in points])
    total = mean_total([point.total for point in points])
    return Cell(mean, half, len(points), own, _mean([point.barrier for point in points]), total)


def _best(cells: Mapping[str, Cell], metric: str) -> tuple[str, ...]:
    means = {label: cell.mean for label, cell in cells.items() if math.isfinite(cell.mean)}
    if len(cells) < 2 or not means:
        return ()
    best = min(means.values()) if Metric(metric).lower else max(means.values())
    return tuple(label for label, mean in means.items() if mean == best)


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None
