"""Runs beside each other: labels, matched sparsities, means over seeds and differences paired by seed."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any, cast

from swamp.errors import SwampError, unknown
from swamp.report.comparison import Cell, Comparison, Cost, Point, Row
from swamp.report.label import label_runs, particles_of, show
from swamp.report.metric import Metric
from swamp.report.read import SPLITS, RunRecord, number
from swamp.report.statistics import Paired, interval, paired

TOLERANCE = 0.005
"""How far apart, relative to each other, two densities may lie and still share a row."""


def compare(
    runs: Sequence[RunRecord], *, metric: str = "accuracy", split: str = "test", baseline: str | None = None
) -> Comparison:
    """Compare runs of one task and model; differences are to `baseline` (`imp` if it is there, else the first label).

    Raises SwampError for runs of several tasks or models, for the same run given twice, and for a metric, split or
    baseline that does not exist.
    """
    _check(runs, metric, split)
    each, notes = label_runs(runs)
    labels = tuple(dict.fromkeys(each))
    if baseline is not None and baseline not in labels:
        raise unknown("baseline", baseline, labels)
    baseline = baseline or ("imp" if "imp" in labels else labels[0])
    points = _points(sorted(zip(each, runs, strict=True), key=lambda pair: pair[0] != baseline), metric, split)
    by_row = groupby(sorted(points, key=lambda point: point.row), key=lambda point: point.row)
    rows = tuple(_row(list(group), labels, baseline, metric) for _, group in by_row)
    first = [point.value for point in points if point.label == baseline and point.cycle == 0]
    return Comparison(
        task=show(runs[0].config["task"]),
        model=show(runs[0].config["model"]),
        metric=metric,
        split=split,
        labels=labels,
        baseline=baseline,
        rows=rows,
        costs={label: _cost([run for run, its in zip(runs, each, strict=True) if its == label]) for label in labels},
        dense=_mean(first),
        comparisons=sum(len(row.differences) for row in rows),
        notes=tuple(notes),
        points=tuple(sorted(points, key=lambda point: (labels.index(point.label), point.seed, point.cycle))),
    )


def _check(runs: Sequence[RunRecord], metric: str, split: str) -> None:
    if not runs:
        raise SwampError("no run was given to compare; give one or more run directories.")
    for key in ("task", "model"):
        first = {json.dumps(run.config[key], sort_keys=True): run for run in reversed(runs)}
        if len(first) > 1:
            found = ", ".join(sorted(f"{show(run.config[key])} ({run.path})" for run in first.values()))
            raise SwampError(f"runs of different {key}s cannot share a table: {found}. Compare one {key} at a time.")
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    known = {name for run in runs for cycle in run.cycles for name, _ in _measured(cycle, (split,))}
    if not known:
        raise SwampError(f"none of the runs measured the {split} split; choose one of {', '.join(SPLITS)}.")
    if f"{split}.{metric}" not in known:
        raise unknown("metric", metric, [name.partition(".")[2] for name in known])


def _measured(holder: Mapping[str, Any], splits: Iterable[str] = SPLITS) -> Iterator[tuple[str, float]]:
    for split in splits:
        metrics: Mapping[str, object] = holder.get(split) or {}
        for name, value in metrics.items():
            if (measured := number(value)) is not None:
                yield f"{split}.{name}", measured


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
        seconds=float(cycle["seconds"]),
        metrics=metrics,
    )


def _row(points: Sequence[Point], labels: Sequence[str], baseline: str, metric: str) -> Row:
    values = {label: _by_seed(points, label) for label in labels}
    cells = {
        label: _cell([point for point in points if point.label == label and point.value is not None])
        for label in labels
        if values[label]
    }
    differences: dict[str, Paired] = {}
    for label in labels:
        if label != baseline and values[label].keys() & values[baseline].keys():
            differences[label] = paired(values[label], values[baseline])
    return Row(points[0].density, points[0].density_all, cells, differences, _best(cells, metric))


def _by_seed(points: Iterable[Point], label: str) -> dict[int, float]:
    return {point.seed: point.value for point in points if point.label == label and point.value is not None}


def _cell(points: Sequence[Point]) -> Cell:
    mean, half = interval([cast(float, point.value) for point in points])
    own = _mean([fmean(point.particles) if point.particles else None for point in points])
    return Cell(mean, half, len(points), own, _mean([point.barrier for point in points]))


def _best(cells: Mapping[str, Cell], metric: str) -> tuple[str, ...]:
    means = {label: cell.mean for label, cell in cells.items() if math.isfinite(cell.mean)}
    if len(cells) < 2 or not means:
        return ()
    best = min(means.values()) if Metric(metric).lower else max(means.values())
    return tuple(label for label, mean in means.items() if mean == best)


def _cost(runs: Sequence[RunRecord]) -> Cost:
    def total(key: str) -> float:
        return fmean(sum(cycle[key] for cycle in run.cycles) for run in runs)

    counts = [len(run.cycles) for run in runs]
    particles = max(map(particles_of, runs))
    return Cost(len(runs), particles, (min(counts), max(counts)), total("steps"), total("samples"), total("seconds"))


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None
