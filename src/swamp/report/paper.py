# pyright: reportUnknownMemberType=false
# matplotlib's own stubs leave **kwargs untyped.
"""Pictures on paper: the numbers of the page's pictures, drawn by matplotlib in the size of a column or a page."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from swamp.errors import unknown
from swamp.files import write_atomic
from swamp.report.picture import Axis, Bars, Curve, Field, Number, Panel, Picture
from swamp.report.scale import limits_of_y, ticks_of, values_of

FORMATS = ("pdf", "svg", "png")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B5508F", "#B07C00", "#3A9BD6", "#444C56", "#7A5FC0")
_GREY = "0.45"
_COLUMN, _PAGE = 3.4, 6.9
"""Inches, of the usual two-column paper."""
_TITLE = 32
"""Characters of a title that stand on a line."""
_INSIDE, _ENTRY = 3, 0.14
"""Entries of a legend that stand within the axes; more stand below, in inches each."""
_FEW = 40
_STYLES = {"line": "-", "dashed": "--", "dotted": ":", "dots": "", "marks": ""}
# Text stays text in PDF and SVG, and what a picture's file says does not depend on when it was made.
_SETTINGS = {"font.size": 8, "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "swamp", "axes.titlesize": 8}
_UNDATED = {"pdf": {"CreationDate": None, "Producer": None}, "svg": {"Date": None}, "png": {}}


def draw(picture: Picture, out: Path, suffix: str) -> None:
    """Draw the picture into `out` as pdf, svg or png, whole or not at all. SwampError for another format."""
    if suffix not in FORMATS:
        raise unknown("format", suffix, FORMATS)
    image = io.BytesIO()
    with cast(Any, matplotlib).rc_context(_SETTINGS):
        _figure(picture).savefig(image, format=suffix, dpi=300, metadata=cast(Any, _UNDATED[suffix]))
    write_atomic(out, image.getvalue())


def _figure(picture: Picture) -> Figure:
    count = len(picture.panels)
    across = min(3, count)
    down = math.ceil(count / across)
    named = max(sum(not isinstance(mark, Field) and _listed(mark) for mark in panel.marks) for panel in picture.panels)
    height = 2.5 + (_ENTRY * named if named > _INSIDE else 0)
    figure = Figure(figsize=(_COLUMN if across == 1 else _PAGE, height * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    axes = cast(list[Axes], list(cast(Any, grid).flat))
    for place, panel in zip(axes, picture.panels, strict=False):
        _panel(place, panel)
    for unused in axes[count:]:
        unused.remove()
    return figure


def _panel(axes: Axes, panel: Panel) -> None:
    for mark in panel.marks:
        match mark:
            case Curve():
                _curve(axes, mark, named=panel.equal)
            case Bars():
                _bars(axes, mark, [other for other in panel.marks if isinstance(other, Bars)])
            case Field():
                _field(axes, mark)
    _scale(axes, panel)
    if panel.title:
        axes.set_title(textwrap.fill(panel.title, _TITLE), parse_math=False, loc="left")
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.24)} if len(labels) > _INSIDE else {}
        for entry in axes.legend(handles, labels, frameon=False, fontsize=6.5, **below).get_texts():
            entry.set_parse_math(False)


def _listed(mark: Curve | Bars) -> bool:
    return isinstance(mark, Bars) or mark.listed


def _curve(axes: Axes, mark: Curve, *, named: bool) -> None:
    x, y = _array(mark.x), _array(mark.y)
    colour = _GREY if mark.colour is None else _COLOURS[mark.colour % len(_COLOURS)]
    if mark.low:
        axes.fill_between(x, _array(mark.low), _array(mark.high), color=colour, alpha=0.16, linewidth=0)
    lined = _STYLES[mark.style]
    marker = "o" if not lined or (len(x) <= _FEW and mark.colour is not None) else ""
    size = {"dots": 2.0, "marks": 5.0}.get(mark.style, 3.0)
    listed = mark.listed and not (named and mark.style == "marks")
    axes.plot(
        x,
        y,
        linestyle=lined or "none",
        marker=marker,
        color="black" if named and mark.style == "marks" else colour,
        alpha=0.4 if mark.style == "dots" else 1.0,
        markersize=size,
        markeredgewidth=0.6 if mark.style == "marks" else 0,
        markeredgecolor="white" if mark.style == "marks" else None,
        linewidth=1.2,
        # What begins with _ is left out of a legend, a name of the user's must not be.
        label=f"\u200b{mark.name}" if listed else "_",
    )
    if named and mark.style == "marks":
        for at, height, note in zip(x, y, mark.notes, strict=False):
            axes.annotate(
                note.replace("$", r"\$"), (at, height), (0, 5), textcoords="offset points", ha="center", fontsize=6
            ).set_bbox({"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.7})


def _bars(axes: Axes, mark: Bars, all_bars: Sequence[Bars]) -> None:
    width = 0.8 / len(all_bars)
    left = -0.4 + width * (all_bars.index(mark) + 0.5)
    colour = _GREY if mark.colour is None else _COLOURS[mark.colour % len(_COLOURS)]
    axes.bar(np.arange(len(mark.labels)) + left, _array(mark.values), width, color=colour, label=f"\u200b{mark.name}")
    axes.set_xticks(range(len(mark.labels)), mark.labels, rotation=45, ha="right", parse_math=False)


def _field(axes: Axes, mark: Field) -> None:
    z = np.ma.masked_invalid(np.array([_array(row) for row in mark.z]))
    heights = z.compressed()
    if not heights.size:
        return
    low, high = mark.limits or (float(heights.min()), float(heights.max()))
    levels = np.linspace(low, high if high > low else low + 1e-9, 16)
    drawn = axes.contourf(mark.x, mark.y, z, levels=levels, cmap="viridis", extend="both" if mark.limits else "neither")
    figure = cast(Figure, axes.get_figure())
    figure.colorbar(drawn, ax=axes, label=mark.name, shrink=0.62, ticks=list(levels[::5]), format="%.3g")


def _scale(axes: Axes, panel: Panel) -> None:
    for which, axis, limits in (("x", panel.x, panel.x.limits), ("y", panel.y, limits_of_y(panel))):
        own = axes.xaxis if which == "x" else axes.yaxis
        if axis.log:
            axes.set(**{f"{which}scale": "log"})
        _ticks(own, axis, values_of(panel, which))
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


def _ticks(own: Any, axis: Axis, values: Sequence[Number]) -> None:
    if ticks := ticks_of(axis, values):
        names = dict(ticks)
        own.set_major_locator(FixedLocator([at for at, _ in ticks]))
        own.set_minor_locator(NullLocator())
        own.set_major_formatter(FuncFormatter(partial(_name_of, names)))


def _name_of(names: Mapping[float, str], at: float, _: object = None) -> str:
    return names.get(at, "")


def _array(values: Sequence[Number]) -> Any:
    return np.array([math.nan if value is None else value for value in values], dtype=float)
