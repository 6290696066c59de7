"""The description of a figure as plain numbers, independent of the library that draws it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from swamp.report.statistics import ReportMetric
from swamp.report.tables import Table

Number = float | None
"""None, like a number that is not finite, is a gap."""
Style = Literal["line", "dashed", "dotted", "steps", "dots", "markers"]
"""line, dashed and dotted have markers at their points if there are few. steps is constant up to the next point.
dots are small, markers large."""
BAND = "95 % interval over seeds"
"""The meaning of every band."""

_COINCIDE = 0.04
"""The distance, relative to the width of a plane, up to which points have one label."""
_MOST_TICKS = 7
_MOST_ROWS = 120
_FEW = 40
"""The most points that have markers on their line."""


@dataclass(frozen=True)
class Axis:
    """A title and a scale. `ticks` are (place, text) pairs; `limits` are (left, right) or (bottom, top)."""

    title: str
    log: bool = False
    limits: tuple[float, float] | None = None
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Curve:
    """Points of one name, joined or not. `color` is an index into the palette; None is grey."""

    name: str
    x: tuple[Number, ...]
    y: tuple[Number, ...]
    color: int | None = 0
    style: Style = "line"
    low: tuple[Number, ...] = ()
    high: tuple[Number, ...] = ()
    """The sides of a band around the curve; as long as `y`, or empty."""
    notes: tuple[str, ...] = ()
    """The name of each point; empty: its x."""
    in_legend: bool = True
    labelled: bool = False
    """Whether the notes are drawn beside the points."""

    @property
    def marked(self) -> bool:
        """Whether its points have markers."""
        few = len(self.x) <= _FEW and self.color is not None and self.style != "steps"
        return few or self.style in ("dots", "markers")


@dataclass(frozen=True)
class BarChart:
    """A bar for each label; bars of several names stand side by side."""

    name: str
    labels: tuple[str, ...]
    values: tuple[Number, ...]
    color: int | None = 0
    in_legend: bool = True


@dataclass(frozen=True)
class Heatmap:
    """Values over a grid, drawn as filled contours: `z[row][column]` is at `x[column]`, `y[row]`."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    z: tuple[tuple[Number, ...], ...]
    limits: tuple[float, float] | None = None
    """The range of the colours; values outside have the colour of the limit."""


Mark = Curve | BarChart | Heatmap


@dataclass(frozen=True)
class Panel:
    """One pair of axes. equal: both axes have the same unit and no ticks (directions in weight space)."""

    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    equal: bool = False

    @property
    def curves(self) -> tuple[Curve, ...]:
        """The curves among the marks."""
        return tuple(mark for mark in self.marks if isinstance(mark, Curve))


@dataclass(frozen=True)
class Figure:
    """Panels with a title, a caption that explains how to read them, and their numbers as tables."""

    title: str
    caption: str
    panels: tuple[Panel, ...]
    tables: tuple[Table, ...] = ()
    """Replace the tables that are made from the panels."""
    key: tuple[str, ...] = ()
    """Lines that explain the labels of points, for all panels."""


def labelled_points(panel: Panel) -> list[tuple[float, float, str, Curve]]:
    """The points of labelled curves with their notes.

    Points of a plane that coincide are one, with the notes of all.
    """
    found = [
        (x, y, note, curve)
        for curve in panel.curves
        if curve.labelled
        for x, y, note in zip(curve.x, curve.y, curve.notes, strict=True)
        if x is not None and y is not None and math.isfinite(x + y)
    ]
    if not panel.equal or not found:
        return found
    near = _COINCIDE * plane_width(panel)
    groups: list[list[tuple[float, float, str, Curve]]] = []
    for point in found:
        group = next((g for g in groups if math.dist(g[0][:2], point[:2]) <= near), None)
        if group is None:
            groups.append([point])
        else:
            group.append(point)
    return [(*group[0][:2], ", ".join(note for _, _, note, _ in group), group[0][3]) for group in groups]


def plane_width(panel: Panel) -> float:
    """The distance from the leftmost to the rightmost point of a panel."""
    x = [x for curve in panel.curves for x in curve.x if x is not None]
    x += [x for mark in panel.marks if isinstance(mark, Heatmap) for x in mark.x]
    return max(x) - min(x)


def panels_of(title: str, x: Axis, y: Axis, marks: Iterable[Mark]) -> list[Panel]:
    """A list with one panel; empty if there are no marks."""
    found = tuple(marks)
    return [Panel(title, x, y, found)] if found else []


def figures_of(title: str, caption: str, panels: Iterable[Panel], tables: Iterable[Table] = ()) -> list[Figure]:
    """A list with one figure; empty if there are no panels."""
    found = tuple(panels)
    return [Figure(title, caption, found, tuple(tables))] if found else []


def sparsity_axis(densities: Sequence[float], *, with_density: bool = False) -> Axis:
    """Sparsity on a logarithmic scale of the density. with_density: ticks also name the remaining weights."""
    most, least = max(densities), min(densities)
    margin = (most / least) ** 0.03 if most > least else 1.1
    ticks = tuple(
        (density, f"{100 * (1 - density):.4g}" + (f"\n{100 * density:.3g}" if with_density else ""))
        for density in density_ticks(densities)
    )
    title = "sparsity (%)\nremaining weights (% of prunable)" if with_density else "sparsity (%)"
    return Axis(title, log=True, limits=(most * margin, least / margin), ticks=ticks)


def density_ticks(densities: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten within the range; the densities themselves if these are fewer than three.

    A tick may lie 1 % outside: whole numbers of weights give 5.02 % for a density of 5 %.
    """
    most, least = max(densities) * 1.01, min(densities) / 1.01
    powers = range(math.floor(math.log10(least)), 1)
    ticks = [round(step * 10.0**power, 12) for power in powers for step in (1, 2, 5)]
    inside = [tick for tick in ticks if least <= tick <= most]
    if len(inside) >= 3:
        return inside
    some = sorted(densities)
    return some[:: math.ceil(len(some) / 7)]


def percent_sparse(density: float) -> str:
    """A density as notes name it: its sparsity in per cent."""
    return f"{100 * (1 - density):.2f} %"


def interval_curve(
    name: str,
    densities: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    color: int | None,
    *,
    factor: float = 1.0,
    **options: Any,
) -> Curve:
    """A curve over density; its band is missing where there is no interval.

    Args:
        name: the name of the curve.
        densities: the density of each point.
        intervals: the mean and the half-width of its interval at each density; the half-width may be NaN.
        color: index into the palette.
        factor: multiplies means and half-widths.
        options: other fields of `Curve`.
    """
    low, high = (
        tuple(factor * (mean + sign * half) if math.isfinite(half) else None for mean, half in intervals)
        for sign in (-1, 1)
    )
    banded = any(side is not None for side in low)
    return Curve(
        name,
        tuple(densities),
        tuple(factor * mean for mean, _ in intervals),
        color,
        low=low if banded else (),
        high=high if banded else (),
        notes=tuple(map(percent_sparse, densities)),
        **options,
    )


def labelled_curve(name: str, x: Iterable[Number], y: Iterable[Number], notes: Iterable[str]) -> Curve:
    """Black markers with their notes beside them, which need no entry in the legend."""
    return Curve(name, tuple(x), tuple(y), None, "markers", notes=tuple(notes), in_legend=False, labelled=True)


def level_line(name: str, level: float, densities: Sequence[float], *, in_legend: bool = True) -> Curve:
    """A dotted grey line at one height over all densities."""
    return Curve(name, (max(densities), min(densities)), (level, level), None, "dotted", in_legend=in_legend)


def robust_limits(
    values: Sequence[float], metric: ReportMetric, halves: Sequence[float] = (), *, outliers: bool = True
) -> tuple[float, float]:
    """Limits that include all values, unless the worst values are outliers: then twice the span of the best 75 %.

    `halves`, half-widths of intervals, widen the limits a little. Values that are not finite do not count. outliers:
    whether there may be any; the last cycles of a single curve are its result, however much worse.
    """
    sign = -1 if metric.lower else 1
    good = sorted((sign * value for value in values if math.isfinite(value)), reverse=True)
    if not good:
        return 0.0, 1.0
    best, usual = good[0], good[math.ceil(0.75 * len(good)) - 1]
    span = max(best - usual, 1e-3 * max(abs(best), 1e-3))
    worst = max(good[-1], best - 2 * span) if outliers else good[-1]
    widest = max(filter(math.isfinite, halves), default=0.0)
    margin = 0.06 * (best - worst) + min(widest, 0.15 * (best - worst)) or 0.01
    low, high = sorted((sign * (worst - margin), sign * (best + margin)))
    return low, high


def limits_of_y(panel: Panel) -> tuple[float, float] | None:
    """The limits of the y axis; if it has none and curves have bands, limits that include the curves.

    Wide bands are cut off: with two seeds a 95 % interval is about 13 times as wide as their difference.
    """
    if panel.y.limits or panel.y.log or not any(curve.low for curve in panel.curves):
        return panel.y.limits
    inside = finite_values([y for curve in panel.curves for y in curve.y])
    if not inside:
        return None
    low, high = min(inside), max(inside)
    room = (high - low or abs(high) or 1.0) * 0.75
    sides = finite_values([side for curve in panel.curves for side in (*curve.low, *curve.high)])
    low, high = max(min([low, *sides]), low - room), min(max([high, *sides]), high + room)
    margin = 0.05 * (high - low)
    return (low - margin, high + margin) if margin > 1e-9 * abs(high) else None


def ticks_of(axis: Axis, values: Sequence[Number]) -> tuple[tuple[float, str], ...]:
    """The ticks of the axis; on a logarithmic scale without ticks, round numbers around the values."""
    if axis.ticks or not axis.log:
        return axis.ticks
    known = [value for value in finite_values(values) if value > 0]
    if not known:
        return ()
    low, high = math.log10(min(known)), math.log10(max(known))
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    every = max(1, math.ceil(len(powers) / _MOST_TICKS))
    ticks = tuple(
        (step * 10.0**power, f"{step * 10.0**power:,.6g}" if -3 <= power <= 5 else f"{step}e{power}")
        for power in powers
        for step in steps
        if power % every == 0
    )
    least, most = sorted(axis.limits or (min(known), max(known)))
    return ticks if sum(least <= at <= most for at, _ in ticks) >= 2 else _between(least, most) or ticks


def _between(least: float, most: float) -> tuple[tuple[float, str], ...]:
    """At least two round numbers in a range that is too narrow for powers of ten; none if it has no width."""
    width = most - least
    if width <= 1e-9 * most:
        return ()
    power = 10.0 ** math.floor(math.log10(width))
    step = next(step for step in (5 * power, 2 * power, power, power / 2, power / 5) if width // step >= 2)
    first = math.ceil(least / step - 1e-9)
    return tuple((at * step, f"{at * step:,.6g}") for at in range(first, math.floor(most / step + 1e-9) + 1))


def finite_values(values: Sequence[Number]) -> list[float]:
    """The values that are finite numbers."""
    return [value for value in values if value is not None and math.isfinite(value)]


def shown(value: Number) -> str:
    """A number as tables show it, with four significant digits."""
    return "–" if value is None else f"{value:,.4g}"


def tables_of(figure: Figure) -> tuple[Table, ...]:
    """The figure's own tables, or else one for each kind of mark in each panel."""
    return figure.tables or tuple(table for panel in figure.panels for table in _tables(panel))


def _tables(panel: Panel) -> list[Table]:
    title = panel.title or panel.y.title
    curves = [curve for curve in panel.curves if curve.style != "dots"]
    bars = [mark for mark in panel.marks if isinstance(mark, BarChart)]
    found = [_extremes(title, panel, mark) for mark in panel.marks if isinstance(mark, Heatmap)]
    if curves:
        found.append(_points_table(title, curves) if panel.equal else _curves_table(title, panel.x.title, curves))
    if bars:
        labels = dict.fromkeys(label for bar in bars for label in bar.labels)
        values = [dict(zip(bar.labels, bar.values, strict=True)) for bar in bars]
        rows = tuple((label, *(shown(value.get(label)) for value in values)) for label in labels)
        found.append(Table(title, (panel.x.title, *(bar.name for bar in bars)), rows))
    return found


def _points_table(title: str, curves: Sequence[Curve]) -> Table:
    rows = tuple(
        (note or curve.name, shown(x), shown(y))
        for curve in curves
        for x, y, note in zip(curve.x, curve.y, curve.notes or [""] * len(curve.x), strict=True)
    )
    return Table(title, ("point", "x", "y"), rows[:_MOST_ROWS], _rest(len(rows)))


def _curves_table(title: str, x_title: str, curves: Sequence[Curve]) -> Table:
    found: dict[str, dict[int, str]] = {}
    for index, curve in enumerate(curves):
        for place, note in enumerate(curve.notes or [shown(x) for x in curve.x]):
            text = shown(curve.y[place])
            low, high = (side[place] if side else None for side in (curve.low, curve.high))
            if low is not None and high is not None:
                text += f" ({shown(low)} to {shown(high)})"
            cells = found.setdefault(note, {})
            cells[index] = f"{cells[index]}; {text}" if index in cells else text
    rows = tuple((note, *(cells.get(index, "–") for index in range(len(curves)))) for note, cells in found.items())
    return Table(title, (x_title, *(curve.name for curve in curves)), rows[:_MOST_ROWS], _rest(len(rows)))


def _rest(count: int) -> str:
    return f"{count - _MOST_ROWS} more are left out." if count > _MOST_ROWS else ""


def _extremes(title: str, panel: Panel, heatmap: Heatmap) -> Table:
    heights = [
        (z, x, y)
        for y, row in zip(heatmap.y, heatmap.z, strict=True)
        for x, z in zip(heatmap.x, row, strict=True)
        if z is not None
    ]
    ends = [("lowest", min(heights)), ("highest", max(heights))] if heights else []
    rows = tuple((name, *map(shown, end)) for name, end in ends)
    return Table(title, ("", heatmap.name, panel.x.title or "x", panel.y.title or "y"), rows)
