"""Figures of the loss around particles and means: barriers, curvature, planes, and trajectories on the way there."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean, quantiles
from typing import Any

from swamp.analysis.rewind_search import RewindTrial
from swamp.report.figure_description import (
    Axis,
    Curve,
    Figure,
    Heatmap,
    Number,
    Panel,
    Style,
    figures_of,
    labelled_curve,
    level_line,
    panels_of,
    shown,
)
from swamp.report.report_data import ReportData, RunAnalyses, percent
from swamp.report.tables import Table

_STEP_0 = 0.5
"""The place of step 0 on a logarithmic axis."""
_LEAST_DENSITY = 1e-6
"""The smallest spectral density that is drawn, relative to the highest."""


def barrier_figures(data: ReportData) -> list[Figure]:
    """Barrier heights against sparsity, and the error along the line at the last cycle."""

    def heights(part: str, name: str, style: Style) -> list[Curve]:
        return data.trend(
            lambda run: run.series("barriers", "barrier", "error", part=part), name, factor=100, style=style
        )

    def lines(part: str) -> list[Curve]:
        return [
            Curve(run.name, tuple(record["coefficients"]), percent(record["error"]), data.color(run.label))
            for run in data.one_per_label("barriers")
            if (record := run.last_cycle("barriers", part))
        ]

    curves = [*heights("particles", "particles", "line"), *heights("next", "mean to next mean", "dashed")]
    if not curves:
        return []
    zero = level_line("0", 0.0, data.densities, in_legend=False)
    x, y = Axis("position on the line"), Axis("error (%)")
    return figures_of(
        "Error barriers between networks that are averaged",
        "A barrier is the rise of the error on the straight line between two networks above the mean of its ends. "
        "Near 0 the networks share a basin and can be averaged; with a barrier of some points their average is "
        "worse than they are.",
        [
            Panel("Barrier at each sparsity", data.axis, Axis("error barrier (points)"), (zero, *curves)),
            *panels_of("Error between two particles, last cycle", x, y, lines("particles")),
            *panels_of("Error between this mean and the next, last cycle", x, y, lines("next")),
        ],
    )


def instability(trials: Sequence[RewindTrial], per_epoch: int, threshold: float) -> Figure:
    """The error barrier between two copies against the step of their ticket.

    Args:
        trials: the trials of a ticket search; repeated ones are drawn as markers.
        per_epoch: steps in an epoch.
        threshold: the error barrier, a fraction, below which a ticket is stable.
    """
    found = sorted(trials, key=lambda trial: trial.steps)

    def curve(name: str, repeated: bool) -> Curve:
        chosen = [trial for trial in found if bool(trial.repeat) is repeated]
        x = tuple(float(trial.steps) or _STEP_0 for trial in chosen)
        y = tuple(100 * trial.barrier if trial.barrier == trial.barrier else None for trial in chosen)
        notes = tuple(f"{trial.steps} ({trial.steps / per_epoch:.3g} epochs)" for trial in chosen)
        return Curve(name, x, y, int(repeated), "markers" if repeated else "line", notes=notes)

    ends = tuple(float(trial.steps) or _STEP_0 for trial in (found[0], found[-1]))
    line = Curve("threshold", ends, (100 * threshold,) * 2, None, "dotted")
    marks = [line, curve("two copies", False), curve("repeated with other batch orders", True)]
    steps = Axis("step of the ticket (0 at the left)", log=True)
    panel = Panel("", steps, Axis("error barrier (points)"), tuple(mark for mark in marks if mark.x))
    return Figure(
        "Stability of the ticket",
        "Two networks are trained from the same ticket with different batch orders. Where the barrier between them is "
        "below the threshold, particles can be averaged.",
        (panel,),
    )


def curvature_figures(data: ReportData) -> list[Figure]:
    """Hessian trace and largest eigenvalue against sparsity, and the spectrum at the last cycle."""
    traces = _mean_and_particles(data, _trace)
    if not traces:
        return []
    largest = _mean_and_particles(data, _largest)
    trace, eigenvalue = Axis("trace", log=_positive(traces)), Axis("eigenvalue", log=_positive(largest))
    return figures_of(
        "Sharpness of the loss at the mean and at its particles",
        "Lower is flatter. Where the mean (line) is below its particles (dashed), averaging moved to a flatter "
        "point of the same basin, where removing weights costs less.",
        [
            *panels_of("Trace of the Hessian", data.axis, trace, traces),
            *panels_of("Largest eigenvalue", data.axis, eigenvalue, largest),
            *panels_of(
                "Density of eigenvalues, last cycle", Axis("eigenvalue"), Axis("density", log=True), _spectra(data)
            ),
        ],
        _curvature_tables(data),
    )


def _mean_and_particles(data: ReportData, value_of: Callable[[Mapping[str, Any]], float | None]) -> list[Curve]:
    def values(run: RunAnalyses, prefix: str) -> Iterator[tuple[int, float, object]]:
        keys = sorted({"/".join(key.split("/")[2:]) for key in run.records if key.startswith("curvature/")})
        cycles: dict[int, list[tuple[float, float]]] = {}
        for record in (r for part in keys if part.startswith(prefix) for r in run.cycles("curvature", part)):
            if (value := value_of(record)) is not None:
                cycles.setdefault(record["cycle"], []).append((record["sparsity"], value))
        # The particles of a run are not independent seeds: their mean is one value of the run.
        for cycle, pairs in cycles.items():
            yield cycle, pairs[0][0], fmean(value for _, value in pairs)

    means = data.trend(lambda run: values(run, "mean"), "mean")
    return means + data.trend(lambda run: values(run, "particle-"), "particles", style="dashed")


def _trace(record: Mapping[str, Any]) -> float | None:
    return record["trace"]["mean"]


def _largest(record: Mapping[str, Any]) -> float | None:
    return record["top"][0]["value"] if record.get("top") else None


def _positive(curves: Iterable[Curve]) -> bool:
    return all(y is not None and y > 0 for curve in curves for y in curve.y)


def _spectra(data: ReportData) -> Iterator[Curve]:
    for run in data.one_per_label("curvature"):
        if record := run.last_cycle("curvature", "mean", key="density"):
            density = record["density"]
            # Between eigenvalues the density falls to 0, which a logarithmic axis cannot show: a gap.
            least = _LEAST_DENSITY * max((v for v in density["value"] if v is not None), default=0.0)
            value = tuple(v if v is not None and v > least else None for v in density["value"])
            name = f"{run.name}, {100 * record['sparsity']:.1f} %"
            yield Curve(name, tuple(density["at"]), value, data.color(run.label))


def _curvature_tables(data: ReportData) -> tuple[Table, ...]:
    rows: list[tuple[str, ...]] = []
    layers: list[tuple[str, ...]] = []
    for run in data.analysed("curvature"):
        for key, record in run.records.items():
            if key.startswith("curvature/cycle-"):
                trace, largest = record["trace"], _largest(record)
                where = f"{run.name}, {100 * record['sparsity']:.2f} %"
                text = f"{shown(trace['mean'])} ±{shown(trace.get('error'))}"
                largest_text = shown(largest if isinstance(largest, float) else None)
                rows.append((where, str(record.get("of", key)), text, largest_text))
        last: Mapping[str, Any] = (run.last_cycle("curvature", "mean") or {}).get("layers") or {}
        layers += [(run.name, name, shown(layer["mean"])) for name, layer in last.items()]
    headings = ("run and sparsity", "of", "trace ± standard error", "largest")
    tables = [Table("Trace and largest eigenvalue", headings, tuple(rows))]
    if layers:
        tables.append(Table("Trace by layer, mean of the last cycle", ("run", "layer", "trace"), tuple(layers)))
    return tuple(tables)


_LANDSCAPES = {
    "": (
        "The basin of the particles",
        "Contours of the error on the plane through particles. Averaging needs particles and mean in one basin without "
        "a ridge between them; it helps if the mean is nearer to the middle of the basin than they are. Networks are "
        "drawn at their nearest point of the plane; one that is farther off than the plane is wide, often the ticket, "
        "is left out.",
    ),
    "random": (
        "Around the mean, in random directions",
        "In a wider basin, weights can change more before the error rises. Compare methods at one sparsity: directions "
        "are scaled to the weights.",
    ),
}


def landscape_figures(data: ReportData) -> list[Figure]:
    """The error on the plane of the particles, and on a plane of random directions around the mean."""
    figures: list[Figure] = []
    for part, (title, caption) in _LANDSCAPES.items():
        runs = data.one_per_label("landscape")
        panels = [_plane(run, record) for run in runs for record in run.some_cycles("landscape", part)]
        figures += figures_of(title, caption, panels)
    return figures


def _plane(run: RunAnalyses, record: Mapping[str, Any]) -> Panel:
    z = tuple(percent(row) for row in record["error"])
    heights = [error for row in z for error in row if error is not None]
    # Far from the basin the error is at chance level: the range of colours covers the basin only.
    limits = (min(heights), quantiles(heights, n=10)[7]) if len(heights) > 1 else None
    if limits and limits[0] >= limits[1]:
        limits = None
    heatmap = Heatmap("error (%)", tuple(record["u"]), tuple(record["v"]), z, limits)
    known: Mapping[str, Sequence[float]] = record.get("points") or {}
    points = {name: at for name, at in known.items() if _on_plane(record, name, at)}
    networks = labelled_curve("networks", [x for x, _ in points.values()], [y for _, y in points.values()], points)
    return Panel(run.title(record), Axis(""), Axis(""), (heatmap, networks), equal=True)


def _on_plane(record: Mapping[str, Any], name: str, at: Sequence[float]) -> bool:
    """Whether a network is drawn: inside the plane, and no farther from it than it is wide."""
    u, v = record["u"], record["v"]
    off_plane: Mapping[str, float] = record.get("off_plane") or {}
    return u[0] <= at[0] <= u[-1] and v[0] <= at[1] <= v[-1] and off_plane.get(name, 0.0) <= u[-1] - u[0]


def trajectory_figures(data: ReportData) -> list[Figure]:
    """Particles in the plane that holds most of their movement, and their distances over training."""
    each = [(run, record) for run in data.one_per_label("trajectories") for record in run.some_cycles("trajectories")]
    planes = [_trajectory_plane(run, record) for run, record in each]
    distances = [panel for run, record in each[-1:] for panel in _distances(run, record)]
    return figures_of(
        "Trajectories of particles from their ticket",
        "All trajectories start at one point and separate because their batch orders differ. If they end around a "
        "common centre, this centre, their mean, is a good network.",
        [*planes, *distances, *_barriers_in_training(each)],
    )


def _trajectory_plane(run: RunAnalyses, record: Mapping[str, Any]) -> Panel:
    marks: list[Curve] = []
    for index, particle in enumerate(record["particles"]):
        steps = tuple(f"step {step}" for step in particle["steps"])
        marks.append(Curve(f"particle {index}", tuple(particle["x"]), tuple(particle["y"]), index, notes=steps))
    ends = [(particle["x"][-1], particle["y"][-1]) for particle in record["particles"] if particle["x"]]
    known = [(x, y) for x, y in ends if x is not None and y is not None]
    if known:
        x, y = (fmean(side) for side in zip(*known, strict=True))
        marks.append(labelled_curve("mean of their ends", [x], [y], ["mean"]))
    shares: list[Number] = list(record.get("explained") or [])
    texts = [f"{100 * share:.0f} %" for share in shares if share is not None]
    axes = [
        Axis(f"direction {n} ({share})" if share else "") for n, share in zip((1, 2), [*texts, "", ""], strict=False)
    ]
    return Panel(run.title(record), axes[0], axes[1], tuple(marks), equal=True)


def _distances(run: RunAnalyses, record: Mapping[str, Any]) -> Iterator[Panel]:
    for key, title in (("from_ticket", "distance from the ticket"), ("between", "distance to particle 0")):
        curves = [
            Curve(f"particle {index}", tuple(particle["steps"]), tuple(particle[key]), index)
            for index, particle in enumerate(record["particles"])
            if isinstance(particle.get(key), list) and len(particle[key]) == len(particle["steps"])
        ]
        yield from panels_of(run.title(record), Axis("step"), Axis(title), curves)


def _barriers_in_training(each: Sequence[tuple[RunAnalyses, Mapping[str, Any]]]) -> list[Panel]:
    """The barrier between the first two particles during training; the name has the step from which it stays low."""
    curves: list[Curve] = []
    for run, record in each:
        found: Mapping[str, list[Number]] = record.get("barriers") or {}
        if found.get("steps"):
            step = record.get("onset")
            when = "not stable" if step is None else f"stable from step {step}"
            name = f"{run.title(record)}: {when}"
            curves.append(Curve(name, tuple(found["steps"]), percent(found["error"]), len(curves)))
    return panels_of("Two particles during training", Axis("step"), Axis("error barrier (points)"), curves)
