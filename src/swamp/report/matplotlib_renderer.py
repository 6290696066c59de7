# pyright: reportUnknownMemberType=false
# matplotlib's own stubs leave **kwargs untyped.
"""Draws figures for print with matplotlib. It builds figure objects; pyplot's global state is not touched."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from swamp.files import write_atomic
from swamp.report.figure_description import (
    BAND,
    BarChart,
    Curve,
    Figure,
    Heatmap,
    Number,
    Panel,
    labelled_points,
    limits_of_y,
    ticks_of,
)

FORMATS = ("pdf", "svg", "png")
# Okabe and Ito's palette, darker where it is pale on white: distinguishable with every common colour blindness.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#B5508F", "#B07C00", "#3A9BD6", "#444C56", "#7A5FC0")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_GREY, _PALE = "0.45", "0.75"
_LINES = {"line": "-", "dashed": "--", "dotted": ":", "steps": "-", "dots": "", "markers": ""}
_SIZES = {"dots": 2.6, "markers": 5.0}
_COLUMN, _PAGE = 3.4, 6.9
"""Widths in inches of the usual two-column paper."""
_KEY_COLUMN, _NUMBERED = 1.6, 3.4
"""Widths in inches of a column of the key, and of a panel in a figure with a key."""
_KEY_LINES = 7
"""Lines of a key in an inch."""
_TITLE = 32
"""Characters in a line of a title."""
_ENTRY = 34
"""Characters in a line of a legend entry."""
_ENTRY_HEIGHT = 0.14
"""Inches for a line of a legend, which is drawn below the axes: inside, it would cover lines."""
_SLANTED = 0.4
"""Inches for the slanted labels of bars."""
_BELOW_LABELS = 0.02
"""Inches between the labels of the x axis and the legend."""
_MOST_LINES = 18
"""The most lines for the names of grey curves."""
_LABEL = 6.0
"""The font size of labels in points."""
_OFFSETS = sorted(
    ((3.0 * i, 2.5 * j) for i in range(-10, 11) for j in range(-8, 9)),
    key=lambda offset: (offset[0] ** 2 + (1.5 * offset[1]) ** 2, -offset[0], -offset[1]),
)
"""Places of a label relative to its point, in points of 1/72 inch: near before far, right before left."""
# Text stays text in PDF and SVG, and a file does not depend on the time it was made.
_SETTINGS = {"font.size": 8, "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "swamp", "axes.titlesize": 8}
_UNDATED = {"pdf": {"CreationDate": None, "Producer": None}, "svg": {"Date": None}, "png": {}}


def draw(figure: Figure, files: Sequence[Path], suffix: str = "", *, wide: bool = False) -> None:
    """Draw a figure into files, each complete or not written at all.

    Args:
        figure: the description.
        files: where to write it.
        suffix: one of FORMATS (default: by the name of each file).
        wide: a single panel is as wide as the page, not as a column, with its legend at the side.
    """
    with cast(Any, matplotlib).rc_context(_SETTINGS):
        drawn = _figure(figure, wide)
        for file in files:
            image, kind = io.BytesIO(), suffix or file.suffix[1:].lower()
            drawn.savefig(image, format=kind, dpi=300, metadata=cast(Any, _UNDATED[kind]))
            write_atomic(file, image.getvalue())


def _figure(figure: Figure, wide: bool) -> matplotlib.figure.Figure:
    count = len(figure.panels)
    across = min(3, count)
    down = math.ceil(count / across)
    wide = wide and count == 1
    legends = [legend_entries(panel) for panel in figure.panels]
    lines = [sum(text.count("\n") + 1 for text in entries) for entries in legends]
    slanted = any(isinstance(mark, BarChart) for panel in figure.panels for mark in panel.marks)
    below = 0 if wide else _ENTRY_HEIGHT * max(lines) + (_SLANTED if slanted else 0)
    height = ((4.0 if wide else 3.4 if figure.key else 2.5) + below) * down
    width = _NUMBERED * across if figure.key else _PAGE if wide or across > 1 else _COLUMN
    drawn, place = _with_key(figure.key, width, height)
    grid = cast(list[Axes], list(place.subplots(down, across, squeeze=False).flat))
    for unused in grid[count:]:
        unused.remove()
    for axes, panel, entries in zip(grid, figure.panels, legends, strict=False):
        _panel(axes, panel)
        _legend(axes, entries, beside=wide)
    # The layout decides which numbers the axes show. It is repeated with them when the figure is saved.
    drawn.draw_without_rendering()
    for axes, panel in zip(grid, figure.panels, strict=False):
        _labels(axes, panel)
        if not wide:
            _legend_below(axes)
    drawn.draw_without_rendering()
    return drawn


def _with_key(key: Sequence[str], width: float, height: float) -> tuple[matplotlib.figure.Figure, Any]:
    """An empty figure with the key at the right, and the part of it that is left for the panels."""
    lines = int(height * _KEY_LINES)
    columns = math.ceil(len(key) / lines)
    drawn = matplotlib.figure.Figure(figsize=(width + _KEY_COLUMN * columns, height), layout="constrained")
    if not key:
        return drawn, drawn
    place, beside = cast(Any, drawn.subfigures(1, 2, width_ratios=(width, _KEY_COLUMN * columns)))
    for column in range(columns):
        text = "\n".join(key[column * lines : (column + 1) * lines])
        beside.text(column / columns, 0.98, text, va="top", fontsize=6.5, parse_math=False, linespacing=1.4)
    return drawn, place


def _panel(axes: Axes, panel: Panel) -> None:
    _scale(axes, panel)
    bars = [mark for mark in panel.marks if isinstance(mark, BarChart)]
    for mark in panel.marks:
        match mark:
            case Curve():
                _curve(axes, mark)
            case BarChart():
                _bars(axes, mark, bars)
            case Heatmap():
                _heatmap(axes, mark)
    if panel.title:
        axes.set_title(textwrap.fill(panel.title, _TITLE), parse_math=False, loc="left")


def _color(mark: Curve | BarChart) -> str:
    if mark.color is not None:
        return _COLORS[mark.color % len(_COLORS)]
    if isinstance(mark, Curve) and mark.labelled:
        return "black"
    return _PALE if isinstance(mark, Curve) and mark.style == "line" else _GREY


def _style(mark: Curve) -> dict[str, Any]:
    line, grey = _LINES[mark.style], mark.color is None
    large = mark.style == "markers"
    return {
        "color": _color(mark),
        "linestyle": line or "none",
        "linewidth": 0.8 if grey and mark.style == "line" else 1.2,
        "drawstyle": "steps-post" if mark.style == "steps" else "default",
        "marker": (_MARKERS[(mark.color or 0) % len(_MARKERS)] if line else "o") if mark.marked else "",
        "markersize": _SIZES.get(mark.style, 3.0),
        "markeredgewidth": 0.6 if large else 0,
        "markeredgecolor": "white" if large else None,
        "alpha": 0.55 if mark.style == "dots" and not mark.labelled else 1.0,
    }


def _curve(axes: Axes, mark: Curve) -> None:
    x, y = _array(mark.x), _array(mark.y)
    if mark.low:
        axes.fill_between(x, _array(mark.low), _array(mark.high), color=_color(mark), alpha=0.16, linewidth=0)
    axes.plot(x, y, **_style(mark), zorder=1.8 if mark.color is None and not mark.labelled else 2.0)
    if not axes.get_autoscaley_on() and (mark.style != "dots" or mark.labelled):
        # An arrow at the edge for each point outside the limits.
        low, high = axes.get_ylim()
        for edge, marker, beyond in ((low, 7, y < low), (high, 6, y > high)):
            if beyond.any():
                arrows: dict[str, Any] = {"linestyle": "none", "marker": marker, "markersize": 5, "color": _color(mark)}
                axes.plot(x[beyond], np.full(beyond.sum(), edge), **arrows, clip_on=False)


def _bars(axes: Axes, mark: BarChart, all_bars: Sequence[BarChart]) -> None:
    width = 0.8 / len(all_bars)
    left = -0.4 + width * (all_bars.index(mark) + 0.5)
    axes.bar(np.arange(len(mark.labels)) + left, _array(mark.values), width, color=_color(mark))
    axes.set_xticks(range(len(mark.labels)), mark.labels, rotation=45, ha="right", parse_math=False)


def _heatmap(axes: Axes, mark: Heatmap) -> None:
    z = np.ma.masked_invalid(np.array([_array(row) for row in mark.z]))
    heights = z.compressed()
    if not heights.size:
        return
    low, high = mark.limits or (float(heights.min()), float(heights.max()))
    levels = np.linspace(low, high if high > low else low + 1e-9, 16)
    drawn = axes.contourf(mark.x, mark.y, z, levels=levels, cmap="viridis", extend="both" if mark.limits else "neither")
    figure = cast(matplotlib.figure.Figure, axes.get_figure())
    figure.colorbar(drawn, ax=axes, label=mark.name, shrink=0.62, ticks=list(levels[::5]), format="%.3g")


def _scale(axes: Axes, panel: Panel) -> None:
    for which, axis, limits in (("x", panel.x, panel.x.limits), ("y", panel.y, limits_of_y(panel))):
        own: Any = axes.xaxis if which == "x" else axes.yaxis
        if axis.log:
            axes.set(**{f"{which}scale": "log"})
        if ticks := ticks_of(axis, [value for curve in panel.curves for value in getattr(curve, which)]):
            own.set_major_locator(FixedLocator([at for at, _ in ticks]))
            own.set_minor_locator(NullLocator())
            own.set_major_formatter(FixedFormatter([text for _, text in ticks]))
        if limits:
            axes.set(**{f"{which}lim": limits})
        own.set_label_text(axis.title, parse_math=False)
    axes.grid(color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["right", "top"]].set_visible(False)
    if panel.equal:
        axes.set_aspect("equal")
        axes.grid(False)
        axes.set_xticks([])
        axes.set_yticks([])


def legend_entries(panel: Panel) -> dict[str, Any]:
    """Text -> the artist beside it; grey lines share one entry, and so do bands."""
    listed = [mark for mark in panel.marks if isinstance(mark, BarChart | Curve) and mark.in_legend]
    entries: dict[str, Any] = {}
    others = [mark.name for mark in listed if isinstance(mark, Curve) and mark.color is None and mark.style == "line"]
    for mark in listed:
        if isinstance(mark, BarChart):
            entries[_wrapped(mark.name)] = Patch(color=_color(mark))
        elif mark.name not in others:
            entries[_wrapped(mark.name)] = Line2D([], [], **_style(mark))
    if len(listed) > 1 and any(curve.low for curve in panel.curves):
        entries[BAND] = Patch(color="0.5", alpha=0.3, linewidth=0)
    if others:
        # Lines break between names, not within them.
        names = ", ".join(name.replace(" ", "\u00a0") for name in others)
        text = _wrapped(f"{len(others)} others: {names}")
        short = text if text.count("\n") < _MOST_LINES else f"{len(others)} others: see the table"
        entries[short] = Line2D([], [], color=_PALE, linewidth=0.8)
    return entries if len(entries) > 1 else {}


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, _ENTRY, break_on_hyphens=False))


def _legend(axes: Axes, entries: Mapping[str, Any], *, beside: bool) -> None:
    if not entries:
        return
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
    if beside:
        place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    # matplotlib leaves out names that begin with _, which a user's name may do.
    names = [f"\u200b{name}" for name in entries]
    for text in axes.legend(list(entries.values()), names, frameon=False, fontsize=6.5, **place).get_texts():
        text.set_parse_math(False)


def _legend_below(axes: Axes) -> None:
    """Move the legend below the labels of the x axis, whose height the last drawing shows."""
    legend, labels = axes.get_legend(), axes.xaxis.get_tightbbox()
    if legend is None or labels is None:
        return
    figure = cast(matplotlib.figure.Figure, axes.get_figure(root=True))
    # In inches, as the axes may still become smaller.
    inches = (axes.get_window_extent().y0 - labels.y0) / figure.dpi + _BELOW_LABELS
    below = ScaledTranslation(0, -inches, figure.dpi_scale_trans)
    legend.set_bbox_to_anchor((0.5, 0), transform=axes.transAxes + below)


def _labels(axes: Axes, panel: Panel) -> None:
    """Draw the notes of labelled curves, each at the nearest place that covers no point and no other label."""
    low, high = axes.get_ylim()
    labels = [(x, min(max(y, low), high), note, mark) for x, y, note, mark in labelled_points(panel)]
    if not labels:
        return
    figure = cast(matplotlib.figure.Figure, axes.get_figure(root=True))
    points = axes.transData.transform([(x, y) for x, y, _, _ in labels]) * 72 / figure.dpi
    corners = np.array(axes.get_window_extent().get_points()) * 72 / figure.dpi
    placed: list[tuple[float, float, float, float]] = []
    for (x, y, note, mark), point in zip(labels, points, strict=True):
        half = (0.3 * _LABEL * len(note) + 1.5, 0.6 * _LABEL + 1.0)
        offset = free_offset(point, half, placed, points, corners)
        placed.append((point[0] + offset[0], point[1] + offset[1], *half))
        colored = mark.color is not None
        box = {"boxstyle": "round,pad=0.12", "fc": "white", "alpha": 0.75, "lw": 0.6}
        axes.annotate(
            note.replace("$", r"\$"),
            (x, y),
            offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_LABEL,
            color=_color(mark),
            weight="bold" if colored else "normal",
            annotation_clip=False,
            bbox={**box, "ec": _color(mark) if colored else "none"},
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.5"} if math.hypot(*offset) > 3 * _LABEL else None,
            zorder=4 if colored else 3,
        ).set_in_layout(False)


def free_offset(
    point: Sequence[float],
    half: tuple[float, float],
    placed: Sequence[tuple[float, float, float, float]],
    points: Any,
    corners: Any,
) -> tuple[float, float]:
    """The nearest offset at which a label of half-size `half` is free and inside the axes; all in points.

    If there is none, the label covers its own point.
    """
    (left, bottom), (right, top) = corners
    for dx, dy in _OFFSETS:
        x, y = point[0] + dx, point[1] + dy
        inside = left + half[0] < x < right - half[0] and bottom + half[1] < y < top - half[1]
        clear = all(abs(x - at[0]) > half[0] + at[2] or abs(y - at[1]) > half[1] + at[3] for at in placed)
        if inside and clear and all(abs(x - p[0]) > half[0] + 2 or abs(y - p[1]) > half[1] + 2 for p in points):
            return dx, dy
    return 0.0, 0.0


def _array(values: Sequence[Number]) -> Any:
    return np.array(values, dtype=float)  # None becomes NaN
