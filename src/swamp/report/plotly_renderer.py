"""Panels as plotly's JSON. Colours are names of the page's style, `@c0` or `@ink/0.2`: light and dark mode differ."""

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from swamp.report.figure_description import (
    Axis,
    BarChart,
    Curve,
    Heatmap,
    Mark,
    Number,
    Panel,
    labelled_points,
    limits_of_y,
    plane_width,
    ticks_of,
)

_COLORS = 8
"""The number of colours in the page's palette."""
_LINED = ("line", "dashed", "dotted", "steps")
_DASHES = {"dashed": "dash", "dotted": "dot"}
_SIZES = {"dots": 6, "markers": 9}
_EQUAL = {"scaleanchor": "x", "constrain": "domain"}
_NO_TICKS = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": ""}
_NAME = 48
"""The most characters of a name."""
_LABEL_WIDTH, _LABEL_HEIGHT = 0.25, 0.07
"""The size of a label of ten characters, relative to the width of a plane."""


def plotly_json(panel: Panel) -> dict[str, Any]:
    """`data` and `layout` of a panel, as plain values in which every number is finite."""
    data = [trace for mark in panel.marks for trace in _traces(mark, panel)]
    entries = sum(trace.get("showlegend", False) for trace in data)
    layout = {
        "xaxis": _axis(panel.x, panel, "x", panel.x.limits),
        "yaxis": _axis(panel.y, panel, "y", limits_of_y(panel)) | (_EQUAL if panel.equal else {}),
        "showlegend": entries > 1,
        "height": 330 + (20 * entries if entries > 1 else 0),
        "annotations": list(_labels(panel)),
    }
    return {"data": data, "layout": layout}


def _traces(mark: Mark, panel: Panel) -> Iterator[dict[str, Any]]:
    match mark:
        case Curve():
            if mark.low:
                yield _band(mark)
            yield _curve(mark, panel)
        case BarChart():
            yield {
                "type": "bar",
                "name": _escaped(_short(mark.name)),
                "x": [_escaped(label) for label in mark.labels],
                "y": _finite(mark.values),
                "marker": {"color": _color(mark)},
                "showlegend": mark.in_legend,
            }
        case Heatmap():
            yield _heatmap(mark)


def _curve(mark: Curve, panel: Panel) -> dict[str, Any]:
    pale = mark.style == "dots" and not mark.labelled
    color = _color(mark)
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": _escaped(_short(mark.name)),
        "x": _finite(mark.x),
        "y": _finite(mark.y),
        "mode": "+".join(["lines"] * (mark.style in _LINED) + ["markers"] * mark.marked),
        "marker": {"color": color, "size": _SIZES.get(mark.style, 6), "opacity": 0.75 if pale else 1},
        "line": {
            "color": color,
            "width": 2,
            "dash": _DASHES.get(mark.style, "solid"),
            "shape": "hv" if mark.style == "steps" else "linear",
        },
        "legendgroup": _escaped(mark.name),
        "showlegend": mark.in_legend,
        "hovertemplate": _hover(mark, panel),
    }
    if mark.style == "markers":
        trace["marker"]["line"] = {"color": "@paper", "width": 2}
    if mark.notes:
        trace["text"] = [_escaped(note) for note in mark.notes]
    return trace


def _hover(mark: Curve, panel: Panel) -> str:
    # The template is fixed: names are inserted by reference, so that no name can be a template.
    first = "%{text}" if mark.notes else f"{_escaped(panel.x.title)} %{{x:.4g}}"
    second = "" if panel.equal else f"<br>{_escaped(panel.y.title)} %{{y:.4g}}"
    return f"{first}{second}<extra>%{{fullData.name}}</extra>"


def _band(mark: Curve) -> dict[str, Any]:
    """One polygon for each part of the curve without a gap."""
    x: list[Number] = []
    y: list[Number] = []
    for part in _parts(zip(_finite(mark.x), _finite(mark.low), _finite(mark.high), strict=True)):
        gap = [None] if x else []
        x += [*gap, *(at for at, _, _ in part), *(at for at, _, _ in reversed(part))]
        y += [*gap, *(high for _, _, high in part), *(low for _, low, _ in reversed(part))]
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "fill": "toself",
        "fillcolor": f"{_color(mark)}/0.16",
        "mode": "lines",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "legendgroup": _escaped(mark.name),
        "showlegend": False,
    }


def _parts(points: Iterable[tuple[Number, Number, Number]]) -> list[list[tuple[float, float, float]]]:
    parts: list[list[tuple[float, float, float]]] = [[]]
    for x, low, high in points:
        if x is None or low is None or high is None:
            parts.append([])
        else:
            parts[-1].append((x, low, high))
    return [part for part in parts if part]


def _heatmap(mark: Heatmap) -> dict[str, Any]:
    name = _escaped(mark.name)
    trace: dict[str, Any] = {
        "type": "contour",
        "name": name,
        "x": _finite(mark.x),
        "y": _finite(mark.y),
        "z": [_finite(row) for row in mark.z],
        "colorscale": "Viridis",
        "connectgaps": False,
        "showlegend": False,
        "ncontours": 16,
        "line": {"width": 0.5, "color": "rgba(255,255,255,0.5)"},
        "colorbar": {"title": {"text": name, "side": "right"}, "thickness": 10, "len": 0.9, "outlinewidth": 0},
        "hovertemplate": f"{name} %{{z:.3g}}<extra></extra>",
    }
    if mark.limits:
        low, high = mark.limits
        # Contours end at the largest value that has a colour of its own.
        trace |= {"zmin": low, "zmax": high, "autocontour": False}
        trace["contours"] = {"start": low, "end": high, "size": (high - low) / 15}
    return trace


def _labels(panel: Panel) -> Iterator[dict[str, Any]]:
    above: list[tuple[float, float]] = []
    for x, y, note, _ in labelled_points(panel):
        # In a plane a label is below its point where it would cover the label of an earlier point.
        covers = panel.equal and any(_covers(x - a, y - b, plane_width(panel)) for a, b in above)
        if not covers:
            above.append((x, y))
        yield {
            # plotly takes the place of an annotation on a logarithmic axis as a logarithm.
            "x": math.log10(x) if panel.x.log else x,
            "y": math.log10(y) if panel.y.log else y,
            "text": _escaped(_short(note)),
            "showarrow": False,
            "yshift": -15 if covers else 15,
            "bgcolor": "@paper/0.75",
            "font": {"size": 11},
        }


def _covers(right: float, up: float, width: float) -> bool:
    """Whether two labels overlap, at this distance of their points in a plane of this width."""
    return abs(right) < _LABEL_WIDTH * width and abs(up) < _LABEL_HEIGHT * width


def _axis(axis: Axis, panel: Panel, which: str, limits: tuple[float, float] | None) -> dict[str, Any]:
    drawn: dict[str, Any] = {"title": {"text": _escaped(axis.title)}, "type": "log" if axis.log else "linear"}
    if which == "x" and any(isinstance(mark, BarChart) for mark in panel.marks):
        drawn["type"] = "category"
    if limits:
        drawn["range"] = [math.log10(limit) if axis.log else limit for limit in limits]
    if ticks := ticks_of(axis, [value for curve in panel.curves for value in getattr(curve, which)]):
        drawn |= {"tickvals": [at for at, _ in ticks], "ticktext": [_escaped(name) for _, name in ticks]}
    return drawn | _NO_TICKS if panel.equal else drawn


def _color(mark: Curve | BarChart) -> str:
    if mark.color is None:
        return "@ink" if isinstance(mark, Curve) and mark.labelled else "@soft"
    return f"@c{mark.color % _COLORS}"


def _escaped(text: str) -> str:
    """Text that plotly shows unchanged: it would read tags in it."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _finite(values: Sequence[Number]) -> list[Number]:
    # Six figures are enough for a drawing, and halve the size of the page.
    return [float(f"{value:.6g}") if value is not None and math.isfinite(value) else None for value in values]
