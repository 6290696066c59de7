"""The figure of a tuning: its trials, and what each option does to the metric."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from swamp.report.figure_description import Axis, BarChart, Curve, Figure, Mark, Panel, robust_limits
from swamp.report.statistics import ReportMetric

_MOST_OPTIONS = 4
"""Options that have a panel of their own."""
_MOST_TICKS = 4


@dataclass(frozen=True)
class SearchedOption:
    """An option and its scale."""

    name: str
    log: bool = False


@dataclass(frozen=True)
class TriedSetting:
    """A trial: its number from 0, the value of each option, and the metric; None if it was stopped early or failed."""

    number: int
    settings: Mapping[str, bool | int | float | str]
    value: float | None


def search_figure(
    metric: ReportMetric,
    lower: bool,
    trials: Mapping[str, Sequence[TriedSetting]],
    importance: Mapping[str, Mapping[str, float]],
    options: Sequence[SearchedOption],
) -> Figure:
    """The metric of each trial and the best so far, the importance of options, and the metric against each of them.

    Args:
        metric: The metric of the trials.
        lower: Whether lower is better.
        trials: Method -> its trials, in order.
        importance: Method -> option -> share; empty if it is not known.
        options: Options that were searched. The four most important ones have a panel.
    """
    colors = {method: index for index, method in enumerate(trials)}
    y = Axis(f"validation {metric.heading}", limits=_limits(metric, lower, trials.values()))
    panels = [Panel("Trials", Axis("trial"), y, tuple(_history(metric, lower, trials, colors)))]
    known = {method: shares for method, shares in importance.items() if shares}
    largest = {one.name: max((shares.get(one.name, 0.0) for shares in known.values()), default=0.0) for one in options}
    ranked = sorted(options, key=lambda one: -largest[one.name])
    if known:
        bars = tuple(
            BarChart(
                method,
                tuple(one.name for one in ranked),
                tuple(shares.get(one.name) for one in ranked),
                colors[method],
                in_legend=False,
            )
            for method, shares in known.items()
        )
        panels.append(Panel("Importance of the options", Axis(""), Axis("share"), bars))
    for one in ranked[:_MOST_OPTIONS]:
        places = _places(one, trials.values())
        curves = (_against(metric, one, places, name, trials[name], colors[name]) for name in trials)
        if marks := tuple(curve for curve in curves if curve is not None):
            panels.append(Panel("", _axis(one, places, marks), y, marks))
    return Figure(
        "Tuning",
        "Each point is a trial on validation data; trials that were stopped early have none. Importance is what "
        "separates the good finished trials from the others (PED-ANOVA).",
        tuple(panels),
    )


def _history(
    metric: ReportMetric, lower: bool, trials: Mapping[str, Sequence[TriedSetting]], colors: Mapping[str, int]
) -> list[Mark]:
    marks: list[Mark] = []
    for method, found in trials.items():
        finished = [(one.number, one.value) for one in found if one.value is not None and math.isfinite(one.value)]
        if not finished:
            continue
        best, steps = math.inf if lower else -math.inf, list[float]()
        for _, value in finished:
            best = min(best, value) if lower else max(best, value)
            steps.append(metric.factor * best)
        x = tuple(float(number) for number, _ in finished)
        y = tuple(metric.factor * value for _, value in finished)
        ends = (*x, float(max(one.number for one in found) + 1))
        marks.append(Curve(f"{method}, best so far", ends, (*steps, steps[-1]), colors[method], "steps"))
        marks.append(Curve(method, x, y, colors[method], "markers"))
    return marks


def _limits(metric: ReportMetric, lower: bool, trials: Iterable[Sequence[TriedSetting]]) -> tuple[float, float] | None:
    """Limits without outliers at the worse end."""
    values = [metric.factor * one.value for found in trials for one in found if one.value is not None]
    return robust_limits(values, metric) if lower == metric.lower else None


def _axis(option: SearchedOption, places: Mapping[str, float], marks: Sequence[Curve]) -> Axis:
    if places:
        ticks = tuple((place, name) for name, place in places.items())
        return Axis(option.name, limits=(-0.5, len(places) - 0.5), ticks=ticks)
    if not option.log:
        return Axis(option.name)
    values = [x for mark in marks for x in mark.x if x is not None]
    low, high = math.log10(min(values)), math.log10(max(values))
    round_numbers = (step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in (1, 2, 5))
    inside = [number for number in round_numbers if min(values) <= number <= max(values)]
    few = inside[:: math.ceil(len(inside) / _MOST_TICKS)] if len(inside) > 1 else []
    return Axis(option.name, log=True, ticks=tuple((number, f"{number:.4g}") for number in few))


def _against(
    metric: ReportMetric,
    option: SearchedOption,
    places: Mapping[str, float],
    method: str,
    trials: Sequence[TriedSetting],
    color: int,
) -> Curve | None:
    found = [
        (one.settings[option.name], one.value)
        for one in trials
        if option.name in one.settings and one.value is not None and math.isfinite(one.value)
    ]
    if not found:
        return None
    x = tuple(places[str(value)] if places else float(value) for value, _ in found)
    notes = tuple(str(value) if isinstance(value, str) else f"{value:.4g}" for value, _ in found)
    return Curve(
        method, x, tuple(metric.factor * value for _, value in found), color, "markers", notes=notes, in_legend=False
    )


def _places(option: SearchedOption, trials: Iterable[Sequence[TriedSetting]]) -> dict[str, float]:
    """Value -> place on the axis, of values that are not numbers; empty for numbers."""
    values = [one.settings[option.name] for found in trials for one in found if option.name in one.settings]
    if not any(isinstance(value, str | bool) for value in values):
        return {}
    return {value: float(place) for place, value in enumerate(dict.fromkeys(map(str, values)))}
