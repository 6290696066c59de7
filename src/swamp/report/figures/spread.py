"""Figures of the spread of particles: their convex hull, and the sources of noise that separate them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from swamp.analysis.ablations import FACTORS
from swamp.report.figure_description import (
    Axis,
    BarChart,
    Curve,
    Figure,
    Heatmap,
    Number,
    Panel,
    figures_of,
    labelled_curve,
    panels_of,
    percent_sparse,
    shown,
    tables_of,
)
from swamp.report.report_data import ReportData, RunAnalyses, values_at
from swamp.report.run_records import as_float
from swamp.report.statistics import mean_known
from swamp.report.tables import Column, Table

_GRID = 61
_HEIGHT = math.sqrt(3) / 2
"""The height of a triangle with sides of length 1."""
_STRIPS = ("particles", "pairs", "random", "mean")
_SOUPS = {"mean": "all, equally", "best": "best particle", "greedy": "greedy", "learned": "learned weights"}
Value = Callable[[Mapping[str, Any]], Number]


def hull_figures(data: ReportData) -> list[Figure]:
    """The convex hull of a cycle's particles, every weighted average of them: triangles, samples, soups and shape."""
    return [*_triangles(data), *_samples(data), *_soups(data), *_shape(data)]


def _triangles(data: ReportData) -> list[Figure]:
    return figures_of(
        "Inside the triangle of three particles",
        "Each corner is a particle, the centre their plain average, every other point a weighted average. Averaging "
        "helps if the error is lower in the centre than at the corners; a ridge between them is a barrier.",
        [
            _triangle(run, record)
            for run in data.one_per_label("hull")
            for record in run.some_cycles("hull")
            if record.get("triangle")
        ],
    )


def _triangle(run: RunAnalyses, record: Mapping[str, Any]) -> Panel:
    # Imported here, because the import takes most of a second.
    from scipy import interpolate  # pyright: ignore[reportMissingTypeStubs]

    triangle = record["triangle"]
    places = [(b + c / 2, c * _HEIGHT) for _, b, c in triangle["coefficients"]]
    known = [(place, 100 * e) for place, e in zip(places, triangle["error"], strict=True) if e is not None]
    errors = [error for _, error in known]
    x, y = np.linspace(0, 1, _GRID), np.linspace(0, _HEIGHT, _GRID)
    z = np.full((_GRID, _GRID), np.nan)
    if len(known) > 2:
        between = cast(Any, interpolate).LinearNDInterpolator([place for place, _ in known], errors)
        z = between(*np.meshgrid(x, y))
    rows = tuple(tuple(float(value) if math.isfinite(value) else None for value in row) for row in z)
    limits = (min(errors), max(errors)) if errors and min(errors) < max(errors) else None
    networks = {"particles": ((0.0, 1.0, 0.5), (0.0, 0.0, _HEIGHT)), "their mean": ((0.5,), (_HEIGHT / 3,))}
    notes = {"particles": ("0", "1", "2"), "their mean": ("mean",)}
    marks = (
        Heatmap("error (%)", tuple(map(float, x)), tuple(map(float, y)), rows, limits),
        *(labelled_curve(name, *at, notes[name]) for name, at in networks.items()),
    )
    return Panel(run.title(record), Axis("", limits=(-0.08, 1.08)), Axis("", limits=(-0.06, 1.0)), marks, equal=True)


def _samples(data: ReportData) -> list[Figure]:
    names = tuple((float(place), name) for place, name in enumerate(_STRIPS))
    x = Axis("", limits=(-0.6, len(_STRIPS) - 0.4), ticks=names)
    return figures_of(
        "Weighted averages of particles",
        "Small dots are averages of two particles, or of all particles with random weights. Equal weights are as good "
        "as any if the mean is among the lowest of them.",
        [
            Panel(run.title(record), x, Axis("error (%)"), tuple(_strips(data.color(run.label), record)))
            for run in data.one_per_label("hull")
            if (record := run.last_cycle("hull"))
        ],
    )


def _strips(color: int, record: Mapping[str, Any]) -> Iterator[Curve]:
    values: dict[str, list[object]] = {
        "particles": [corner["error"] for corner in values_at(record, "extreme_points")],
        "pairs": [error for edge in values_at(record, "edges") for error in edge["error"][1:-1]],
        "random": [sample["error"] for sample in values_at(record, "samples")],
        "mean": [record["mean"]["error"]],
    }
    for place, name in enumerate(_STRIPS):
        known = [100 * value for value in values[name] if isinstance(value, int | float)]
        # Evenly spaced in their order, so that dots do not hide each other.
        last = max(1, len(known) - 1)
        x = tuple(place + (0.5 * (index / last - 0.5) if len(known) > 1 else 0.0) for index in range(len(known)))
        if known:
            style = "dots" if name in ("pairs", "random") else "markers"
            yield Curve(name, x, tuple(known), color, style, notes=(name,) * len(known), in_legend=False)


def _soups(data: ReportData) -> list[Figure]:
    bars: list[BarChart] = []
    for run in data.one_per_label("hull"):
        if record := run.last_cycle("hull", key="soups"):
            errors = {label: _points(record["soups"][name]["error"]) for name, label in _SOUPS.items()}
            bars.append(BarChart(run.title(record), tuple(errors), tuple(errors.values()), data.color(run.label)))
    return figures_of(
        "Soups: selected particles against the average of all",
        "Lower is better. Soups were selected on one half of the examples and are compared on the other half: a "
        "learned soup that is worse than the plain average has overfitted its half.",
        panels_of("", Axis(""), Axis("error (%)"), bars),
    )


def _shape(data: ReportData) -> list[Figure]:
    dimension = data.trend(lambda run: run.series("hull", "dimension"))
    distances = data.trend(lambda run: run.series("hull", "radius"), "to their mean")
    distances += data.trend(
        lambda run: run.series("hull", "to_ticket", "particles", of=lambda values: mean_known(values or ())),
        "to their start",
        style="dashed",
    )
    gain = data.trend(lambda run: run.series("hull", "gain"), factor=100)
    figures = figures_of(
        "Spread of the particles",
        "N particles span at most N - 1 dimensions. With nearly as many they differ in every possible way, with one "
        "they lie on a line. Particles that are close to their mean have nothing left to average.",
        [
            *panels_of("Effective dimension of the particles", data.axis, Axis("dimension"), dimension),
            *panels_of("Distance of the particles", data.axis, Axis("distance"), distances),
            *panels_of("Gain of averaging", data.axis, Axis("error saved (points)"), gain),
        ],
    )
    return [replace(figure, tables=(*tables_of(figure), *_correlations(data))) for figure in figures]


def _correlations(data: ReportData) -> Iterator[Table]:
    """Whether larger hulls gain more, over the cycles of a run."""
    sizes = ("radius", "mean_distance", "dimension", "sparsity")
    rows: list[tuple[str, ...]] = []
    for run in data.analysed("hull"):
        gain: Any = run.records.get("hull/all", {}).get("gain")
        if isinstance(gain, Mapping):
            known = cast("Mapping[str, Any]", gain)
            rows.append((run.name, *(shown(known.get(size)) for size in sizes)))
    if rows:
        title = "Rank correlation of the gain with the size of the hull, over cycles"
        yield Table(title, ("run", *(size.replace("_", " ") for size in sizes)), tuple(rows))


def noise_figures(data: ReportData) -> list[Figure]:
    """Distance, dimension, barrier and gain of each source of noise, at the last analysed cycle."""
    found = [(run, records) for run in data.one_per_label("noise") if (records := _last_sources(run))]
    if not found:
        return []
    return figures_of(
        "Sources of noise between particles, and the gain of each",
        "Particles of one ticket and mask differ in one source at a time. Averaging can gain from a source that "
        "gives distance without a barrier. With no source the distance must be 0.",
        [
            Panel(
                title, Axis(""), Axis(unit), tuple(_source_bars(data, run, records, column) for run, records in found)
            )
            for title, (unit, column) in _NOISE_PANELS.items()
        ],
        [noise_table(_source_title(run, records), [*records.values()]) for run, records in found],
    )


def _last_sources(run: RunAnalyses) -> dict[str, Mapping[str, Any]]:
    """Source -> its record, at the last cycle that has one."""
    each = {name: record for name in FACTORS if (record := run.last_cycle("noise", name))}
    last = max((record["cycle"] for record in each.values()), default=None)
    return {name: record for name, record in each.items() if record["cycle"] == last}


def _source_bars(data: ReportData, run: RunAnalyses, records: Mapping[str, Mapping[str, Any]], column: str) -> BarChart:
    labels = tuple(FACTORS[name] for name in records)
    values = tuple(map(_NOISE_VALUES[column], records.values()))
    return BarChart(_source_title(run, records), labels, values, data.color(run.label))


def _source_title(run: RunAnalyses, records: Mapping[str, Mapping[str, Any]]) -> str:
    return f"{run.name}, {percent_sparse(1 - next(iter(records.values()))['sparsity'])}"


def noise_table(title: str, records: Sequence[Mapping[str, Any]], below: str = "") -> Table:
    """A table with a row for each source of noise.

    Args:
        title: the title of the table.
        records: records of the noise analysis.
        below: the text below the table.
    """
    factors = [str(record["factor"]) for record in records]
    columns: list[Column] = [
        ("differ in", [FACTORS.get(factor, factor) for factor in factors]),
        ("particles", [str(record["particles"]) for record in records]),
        *((heading, [shown(value(record)) for record in records]) for heading, value in _NOISE_VALUES.items()),
    ]
    return Table.of_columns(title, columns, below)


def _points(value: object) -> Number:
    found = as_float(value)
    return None if found is None else 100 * found


_NOISE_VALUES: dict[str, Value] = {
    "distance": lambda record: as_float(record["mean_distance"]),
    "radius": lambda record: as_float(record["radius"]),
    "dimension": lambda record: as_float(record["dimension"]),
    "barrier\n(points)": lambda record: _points(record["barrier"]["error"]),
    "mean's\nerror (%)": lambda record: _points(record["mean"]["error"]),
    "gain of\naveraging\n(points)": lambda record: _points(record["gain"]),
}
"""The columns of the table."""
_NOISE_PANELS = {
    "Distance between particles": ("distance", "distance"),
    "Number of directions": ("effective dimension", "dimension"),
    "Barrier between two": ("points", "barrier\n(points)"),
    "Gain of averaging": ("points", "gain of\naveraging\n(points)"),
}
"""The title of each panel, the unit of its axis, and the column that it draws."""
