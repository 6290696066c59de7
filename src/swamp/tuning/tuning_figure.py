"""The figure of a tuning: its trials, and what each option does to the metric."""

import math
from collections.abc import Mapping, Sequence

from swamp.report.figure_description import Axis, BarChart, Curve, Figure, Panel, panels_of, robust_limits
from swamp.report.statistics import ReportMetric
from swamp.tuning.search_space import SearchRange
from swamp.tuning.tuning_directory import TuningPlan
from swamp.tuning.tuning_results import MethodResult

_MOST_OPTIONS = 4
"""Options that have a panel of their own."""
_MOST_TICKS = 4


def tuning_figure(tuning: TuningPlan, results: Sequence[MethodResult]) -> Figure:
    """The metric of each trial and the best so far, the importance of options, and the metric against four of them."""
    metric, lower = ReportMetric(tuning.metric), not tuning.higher
    y = Axis(f"validation {metric.heading}", limits=_limits(metric, lower, results))
    history = (mark for color, result in enumerate(results) for mark in _history(metric, lower, result, color))
    panels = [Panel("Trials", Axis("trial"), y, tuple(history))]
    largest = {
        one.option: max((result.importance.get(one.option, 0.0) for result in results), default=0.0)
        for one in tuning.search
    }
    ranked = sorted(tuning.search, key=lambda one: -largest[one.option])
    names = tuple(one.option for one in ranked)
    bars = tuple(
        BarChart(result.method, names, tuple(map(result.importance.get, names)), color, in_legend=False)
        for color, result in enumerate(results)
        if result.importance
    )
    panels += panels_of("Importance of the options", Axis(""), Axis("share"), bars)
    for one in ranked[:_MOST_OPTIONS]:
        places = _places(one, results)
        curves = (_against(metric, one, places, result, color) for color, result in enumerate(results))
        if marks := tuple(curve for curve in curves if curve is not None):
            panels.append(Panel("", _axis(one, places, marks), y, marks))
    return Figure(
        "Tuning",
        "Each point is a trial on validation data; trials that were stopped early have none. Importance is what "
        "separates the good finished trials from the others (PED-ANOVA).",
        tuple(panels),
    )


def _history(metric: ReportMetric, lower: bool, result: MethodResult, color: int) -> list[Curve]:
    finished = [(one.number, one.value) for one in result.trials if one.value is not None and math.isfinite(one.value)]
    if not finished:
        return []
    best, steps = math.inf if lower else -math.inf, list[float]()
    for _, value in finished:
        best = min(best, value) if lower else max(best, value)
        steps.append(metric.factor * best)
    x = tuple(float(number) for number, _ in finished)
    y = tuple(metric.factor * value for _, value in finished)
    ends = (*x, float(max(one.number for one in result.trials) + 1))
    return [
        Curve(f"{result.method}, best so far", ends, (*steps, steps[-1]), color, "steps"),
        Curve(result.method, x, y, color, "markers"),
    ]


def _limits(metric: ReportMetric, lower: bool, results: Sequence[MethodResult]) -> tuple[float, float] | None:
    """Limits without outliers at the worse end."""
    values = [metric.factor * one.value for result in results for one in result.trials if one.value is not None]
    return robust_limits(values, metric) if lower == metric.lower else None


def _axis(searched: SearchRange, places: Mapping[str, float], marks: Sequence[Curve]) -> Axis:
    if places:
        ticks = tuple((place, name) for name, place in places.items())
        return Axis(searched.option, limits=(-0.5, len(places) - 0.5), ticks=ticks)
    if not searched.log:
        return Axis(searched.option)
    values = [x for mark in marks for x in mark.x if x is not None]
    low, high = math.log10(min(values)), math.log10(max(values))
    round_numbers = (step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in (1, 2, 5))
    inside = [number for number in round_numbers if min(values) <= number <= max(values)]
    few = inside[:: math.ceil(len(inside) / _MOST_TICKS)] if len(inside) > 1 else []
    return Axis(searched.option, log=True, ticks=tuple((number, f"{number:.4g}") for number in few))


def _against(
    metric: ReportMetric, searched: SearchRange, places: Mapping[str, float], result: MethodResult, color: int
) -> Curve | None:
    found = [
        (one.settings[searched.option], one.value)
        for one in result.trials
        if searched.option in one.settings and one.value is not None and math.isfinite(one.value)
    ]
    if not found:
        return None
    x = tuple(places[str(value)] if places else float(value) for value, _ in found)
    notes = tuple(str(value) if isinstance(value, str) else f"{value:.4g}" for value, _ in found)
    y = tuple(metric.factor * value for _, value in found)
    return Curve(result.method, x, y, color, "markers", notes=notes, in_legend=False)


def _places(searched: SearchRange, results: Sequence[MethodResult]) -> dict[str, float]:
    """Value -> place on the axis, of values that are not numbers; empty for numbers."""
    option, trials = searched.option, (one for result in results for one in result.trials)
    values = [one.settings[option] for one in trials if option in one.settings]
    if not any(isinstance(value, str | bool) for value in values):
        return {}
    return {value: float(place) for place, value in enumerate(dict.fromkeys(map(str, values)))}
