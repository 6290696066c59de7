"""Figures of the results: metric against sparsity and cost, particles and their mean, and predictions."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, cast

from swamp.report.comparison import BEST, CellStatistics, Comparison, CyclePoint, SparsityRow
from swamp.report.figure_description import (
    Axis,
    Curve,
    Figure,
    Number,
    Panel,
    Style,
    figures_of,
    interval_curve,
    level_line,
    panels_of,
    percent_sparse,
    robust_limits,
    sparsity_axis,
)
from swamp.report.report_data import ReportData, RunAnalyses, color_of, highlighted, percent, values_at
from swamp.report.statistics import drawn_interval, mean_known
from swamp.report.tables import comparison_tables, cost_table

_MOST_PANELS = 6
_KEY_WIDTH = 30
"""Characters in a line of the key."""
_STYLES: dict[str, Style] = {"mean": "line", "ensemble": "dashed", "particles": "dotted"}


def accuracy_figure(comparison: Comparison, *, alone: bool = False) -> Figure:
    """The metric against sparsity, a curve per method. alone: with the particles, and a title in the panel."""
    metric = comparison.report_metric
    colored = highlighted(comparison)
    densities = [row.density for row in comparison.rows]
    cells = [cell for row in comparison.rows for cell in row.cells.values()]
    inside = [*(cell.mean for cell in cells), *(cell.particles for cell in cells if cell.particles is not None)]
    bands = [_band(cell) for cell in cells]
    low, high = robust_limits(inside, metric, bands, outliers=len(comparison.labels) > 1)
    y = Axis(comparison.heading, limits=(low * metric.factor, high * metric.factor))
    marks: list[Curve] = []
    if comparison.dense is not None:
        marks.append(level_line(f"dense ({comparison.dense_label})", comparison.dense * metric.factor, densities))
    marks += [_means(comparison, label, label in colored) for label in comparison.labels]
    if alone:
        several = [label for label in colored if _averaged(comparison, label)]
        marks += [_particles(comparison, label, in_legend=False) for label in several]
        if several:
            marks.append(Curve("single particles", (), (), None, "dots"))
    title = f"{comparison.task}, {comparison.model}" if alone else ""
    return Figure(
        f"{metric.name.capitalize()} of the averaged network against sparsity",
        f"Fewer weights remain further right; {'lower' if metric.lower else 'higher'} is better. Bands are 95 % "
        "intervals over three or more seeds; the tables have those over two. Methods with overlapping bands may still "
        "differ: see the paired differences below.",
        (Panel(title, sparsity_axis(densities, with_density=alone), y, tuple(marks)),),
        tuple(comparison_tables(comparison, methods_down=len(comparison.labels) > 4)),
    )


def particle_figures(data: ReportData) -> list[Figure]:
    """Each method's particles beside their mean, and the gain of averaging."""
    comparison, metric = data.comparison, data.comparison.report_metric
    several = [label for label in comparison.labels if _averaged(comparison, label)]
    if not several:
        return []
    curves = [
        curve for label in several for curve in (_particles(comparison, label), _means(comparison, label, colored=True))
    ]
    gains = [level_line("0", 0.0, data.densities, in_legend=False), *(_gain(comparison, label) for label in several)]
    value, gain = Axis(comparison.heading), Axis(f"difference ({metric.difference_unit})")
    return figures_of(
        "Particles against their mean",
        "Left: small dots are single particles, the line is their average as one network. Right: the metric of "
        "the average minus the mean metric of its particles; averaging helped where it is "
        f"{'below' if metric.lower else 'above'} 0.",
        [
            *panels_of("Particles (dots) and their mean (line)", data.axis, value, curves),
            *panels_of("Average minus its particles", data.axis, gain, gains),
        ],
    )


def cost_figures(data: ReportData) -> list[Figure]:
    """The metric against the cost of a model."""
    comparison, metric = data.comparison, data.comparison.report_metric
    curves: list[Curve] = []
    for label in comparison.labels:
        rows = [row for row in comparison.rows if label in row.cells]
        spent = tuple(comparison.unit.of(row.cells[label].total) for row in rows)
        reached = tuple(row.cells[label].mean * metric.factor for row in rows)
        notes = tuple(f"{percent_sparse(row.density)} sparse" for row in rows)
        curves.append(Curve(label, spent, reached, data.color(label), notes=notes))
    x = Axis(f"cost of the model ({comparison.unit.heading})", log=True)
    return figures_of(
        "The cost of each network",
        "Each point is a network of one sparsity; its cost includes all cycles up to it. Of two points at the same "
        "sparsity, the better one is further left and higher.",
        panels_of("", x, Axis(comparison.heading), curves),
        [cost_table(comparison)],
    )


def equal_cost_figure(comparison: Comparison) -> Figure:
    """The metric against cost, a panel per sparsity; a method has the same number in all panels.

    There are at most six panels, evenly chosen from the sparsities with several methods, the sparsest included.
    """
    rows = [row for row in comparison.rows if len(row.cost_ranking) > 1] or list(comparison.rows)
    if len(rows) > _MOST_PANELS:
        rows = [rows[round(index * (len(rows) - 1) / (_MOST_PANELS - 1))] for index in range(_MOST_PANELS)]
    some = "" if len(rows) == len(comparison.rows) else f"{len(rows)} of {len(comparison.rows)} sparsities"
    baseline = "" if comparison.baseline == BEST else f"orange: the baseline, {_short(comparison.baseline)}"
    explanation = (
        f"{comparison.task}, {comparison.model}",
        some,
        "line: no method at up to 1.05 times the cost is better over the seeds that both have",
        baseline,
        "arrow: beyond the panel",
    )
    key = (
        *(line for text in explanation for line in textwrap.wrap(text, _KEY_WIDTH)),
        "",
        *(
            f"{_padded(number)}  {_short(label)}{_seeds(rows, label)}"
            for number, label in enumerate(comparison.labels, 1)
        ),
    )
    return Figure(
        "Methods at equal cost",
        "Each number is a method at its mean over its seeds (n in the key). A method on the line is better, over the "
        "seeds that both have, than all that cost up to 1.05 times as much.",
        tuple(_cost_panel(comparison, row) for row in rows),
        tuple(comparison_tables(comparison, at="equal-cost")),
        key,
    )


def _cost_panel(comparison: Comparison, row: SparsityRow) -> Panel:
    metric = comparison.report_metric
    places = {
        rank.label: (rank.cost, metric.factor * row.cells[rank.label].mean)
        for rank in row.cost_ranking
        if rank.cost > 0 and math.isfinite(row.cells[rank.label].mean)
    }
    front = [rank.label for rank in row.cost_ranking if rank.front and rank.label in places]
    base = [label for label in places if label == comparison.baseline]
    best = [label for label in front if label not in base]
    others = [label for label in places if label not in front and label not in base]

    def curve(name: str, labels: Sequence[str], color: int | None, style: Style = "dots") -> Curve:
        x, y = (tuple(places[label][side] for label in labels) for side in (0, 1))
        labelled = style == "dots"
        notes = tuple(str(1 + comparison.labels.index(label)) for label in labels)
        return Curve(name, x, y, color, style, notes=notes, in_legend=False, labelled=labelled)

    marks = (
        curve("front", front, 0, "steps"),
        curve("on the front", best, 0),
        curve("baseline", base, 1),
        curve("others", others, None),
    )
    costs = [cost for cost, _ in places.values()]
    x = (min(costs, default=1) / 1.6, max(costs, default=1) * 1.6)
    low, high = (metric.factor * limit for limit in robust_limits([c.mean for c in row.cells.values()], metric))
    return Panel(
        f"{100 * row.sparsity:.4g} % sparse",
        Axis(f"cost of the model ({comparison.unit.heading})", log=True, limits=x),
        Axis(comparison.heading, limits=(low, high)),
        tuple(mark for mark in marks if mark.x),
    )


def _seeds(rows: Sequence[SparsityRow], label: str) -> str:
    """The number of seeds of a method, e.g. " n=5", or " n=3-5" where it differs between sparsities."""
    counts = sorted({row.cells[label].n for row in rows if label in row.cells})
    return f" n={counts[0]}" if len(counts) == 1 else f" n={counts[0]}-{counts[-1]}" if counts else ""


def _short(label: str) -> str:
    return label if len(label) <= 26 else f"{label[:25]}…"


def _padded(number: int) -> str:
    # A figure space is as wide as a digit.
    return f"{number:2d}".replace(" ", "\u2007")


def _band(cell: CellStatistics) -> float:
    """The half-width to draw: the interval of two seeds is about 13 times as wide as their difference, see tables."""
    return cell.half if cell.n > 2 else math.nan


def _means(comparison: Comparison, label: str, colored: bool) -> Curve:
    rows = [row for row in comparison.rows if label in row.cells]
    # A grey curve has no band.
    means = [(cell.mean, _band(cell) if colored else math.nan) for cell in (row.cells[label] for row in rows)]
    color = color_of(comparison, label) if colored else None
    return interval_curve(label, [row.density for row in rows], means, color, factor=comparison.report_metric.factor)


def _averaged(comparison: Comparison, label: str) -> list[CyclePoint]:
    """The cycles of a method that averaged several particles."""
    points = (point for point in comparison.points if point.label == label)
    return [point for point in points if len(point.particles) > 1 and point.value is not None]


def _particles(comparison: Comparison, label: str, *, in_legend: bool = True) -> Curve:
    factor, rows = comparison.report_metric.factor, comparison.rows
    index, count = comparison.labels.index(label), len(comparison.labels)
    # The dots of several methods are drawn side by side.
    aside = (rows[-1].density / rows[0].density) ** (0.006 * (index - count / 2) * min(1, 8 / count))
    points = [
        (rows[point.row].density, factor * value) for point in _averaged(comparison, label) for value in point.particles
    ]
    return Curve(
        f"{label}: particles",
        tuple(density * aside for density, _ in points),
        tuple(value for _, value in points),
        color_of(comparison, label),
        "dots",
        notes=tuple(percent_sparse(density) for density, _ in points),
        in_legend=in_legend,
    )


def _gain(comparison: Comparison, label: str) -> Curve:
    at: dict[int, list[float]] = {}
    for point in _averaged(comparison, label):
        at.setdefault(point.row, []).append(cast(float, point.value) - fmean(point.particles))
    densities = [comparison.rows[row].density for row in sorted(at)]
    gains = [drawn_interval(at[row]) for row in sorted(at)]
    color = color_of(comparison, label)
    return interval_curve(label, densities, gains, color, factor=comparison.report_metric.factor)


def prediction_figures(data: ReportData) -> list[Figure]:
    """Mean, particles and ensemble; disagreement; and corrupted inputs."""
    return [*_ensemble(data), *_corruptions(data)]


def _ensemble(data: ReportData) -> list[Figure]:
    curves: list[Curve] = []
    for name, style in _STYLES.items():
        curves += data.trend(
            lambda run, name=name: run.series("predictions", name, of=_accuracy_of), name, factor=100, style=style
        )
    disagreement = data.trend(lambda run: run.series("predictions", "disagreement", of=_mean_of_pairs), factor=100)
    return figures_of(
        "The mean beside the ensemble of its particles",
        "The ensemble needs N networks at inference, the mean one: the closer the mean is to the ensemble, the more of "
        "the particles' variety it keeps. Without disagreement neither can gain.",
        [
            *panels_of("One network against several", data.axis, Axis("accuracy (%)"), curves),
            *panels_of("Disagreement of two particles", data.axis, Axis("examples (%)"), disagreement),
        ],
    )


def _accuracy_of(value: Any) -> Number:
    """The accuracy of one network's metrics, or the mean over several; a plain number is the accuracy itself."""
    if isinstance(value, Mapping):
        return _accuracy_of(cast("Mapping[str, Any]", value).get("accuracy"))
    if isinstance(value, list):
        known = [one for item in cast("list[Any]", value) if (one := _accuracy_of(item)) is not None]
        return fmean(known) if known else None
    return float(value) if isinstance(value, int | float) else None


def _mean_of_pairs(matrix: Sequence[Sequence[Number]] | None) -> Number:
    """The mean of the known numbers below the diagonal."""
    return mean_known([row[j] for i, row in enumerate(matrix or ()) for j in range(i)])


def _corruptions(data: ReportData) -> list[Figure]:
    found: dict[str, list[Curve]] = {}
    for run in data.one_per_label("predictions"):
        record = run.last_cycle("predictions", key="corruptions")
        kinds: Mapping[str, Any] = record["corruptions"] if record else {}
        # If inputs cannot be corrupted, the value is the reason, a sentence.
        for kind in (kind for kind in kinds if isinstance(kinds[kind], list)):
            found.setdefault(kind, []).extend(_corruption_curves(run, values_at(kinds, kind), data.color(run.label)))
    return figures_of(
        "Corrupted inputs, last cycle",
        "Inputs are corrupted more strongly further right. The mean is more robust than its particles if its accuracy "
        "falls later.",
        [Panel(kind, Axis("severity"), Axis("accuracy (%)"), tuple(curves)) for kind, curves in found.items()],
    )


def _corruption_curves(run: RunAnalyses, steps: Sequence[Mapping[str, Any]], color: int) -> Iterable[Curve]:
    x = tuple(step["severity"] for step in steps)
    for name, style in _STYLES.items():
        name = "particle" if name == "particles" else name
        y = percent(_accuracy_of(step.get(name)) for step in steps)
        yield Curve(f"{run.name}: {name}", x, y, color, style)
