"""Figures of the value of one more particle: losses of means of 1, 2, 4 ... particles, and their prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from swamp.analysis.averaging_gain import gains
from swamp.report.figure_description import Axis, Curve, Figure, Panel, figures_of, panels_of, shown, tables_of
from swamp.report.report_data import Quantity, ReportData, RunAnalyses
from swamp.report.tables import Table


def averaging_figures(data: ReportData) -> list[Figure]:
    """The loss of the mean against its number of particles, and gains beside their predictions."""
    return [*_losses(data), *_gains(data)]


def _losses(data: ReportData) -> list[Figure]:
    return figures_of(
        "Loss of the mean against the number of particles",
        "Each point is the mean over many choices of n of the cycle's particles. Dashed: the law, by which the loss "
        "falls with 1 / n, from single particles and pairs alone. Where the curve is flat, more particles gain "
        "nothing; where it rises, there is a barrier between them.",
        [
            _loss_panel(run, record)
            for run in data.one_per_label("averaging")
            for record in run.some_cycles("averaging")
        ],
    )


def _loss_panel(run: RunAnalyses, record: Mapping[str, Any]) -> Panel:
    sizes = tuple(float(size) for size in record["sizes"])
    ticks = tuple((size, f"{size:g}") for size in sizes)
    values = record["loss"]
    marks = (
        Curve("measured", sizes, tuple(values["mean"]), 0),
        Curve("predicted from pairs", sizes, tuple(values["predicted"]), 1, "dashed"),
    )
    limits = (sizes[0] / 1.1, sizes[-1] * 1.1)
    return Panel(
        run.title(record), Axis("particles in the mean", log=True, limits=limits, ticks=ticks), Axis("loss"), marks
    )


def _gains(data: ReportData) -> list[Figure]:
    runs = data.one_per_label("averaging")
    curves: list[Curve] = []
    for run in runs:
        found = [(record["cycle"], gain) for record in run.cycles("averaging") for gain in gains(record, "loss")]
        if found:
            predicted, measured = zip(*((gain.predicted, gain.measured) for _, gain in found), strict=True)
            notes = tuple(f"cycle {cycle}, {gain.before} to {gain.after}" for cycle, gain in found)
            curves.append(Curve(run.label, predicted, measured, data.color(run.label), "dots", notes=notes))
    if not curves:
        return []
    ends = [value for curve in curves for value in (*curve.x, *curve.y) if value is not None]
    diagonal = Curve("as predicted", (min(ends), max(ends)), (min(ends), max(ends)), None, "dotted")
    figures = figures_of(
        "Gain of more particles: predicted and measured",
        "Each point is one cycle, and one step from n to more particles, n = 2 or more: the loss that was saved "
        "against the loss that the law predicts from single particles and pairs. Points on the dotted line were "
        "predicted exactly.",
        panels_of("", Axis("predicted gain (loss)"), Axis("measured gain (loss)"), [*curves, diagonal]),
    )
    return [replace(figure, tables=(*tables_of(figure), *_correlations(runs))) for figure in figures]


def _correlations(runs: list[RunAnalyses]) -> list[Table]:
    whole = [(run.name, run.records["averaging/all"]) for run in runs if "averaging/all" in run.records]
    rows = tuple((name, shown(record.get("loss")), shown(record.get("error"))) for name, record in whole)
    title = "Rank correlation of predicted and measured gains, over cycles"
    return [Table(title, ("run", "loss", "error"), rows)] if rows else []


def wave_figures(data: ReportData) -> list[Figure]:
    """The numbers of particles that were chosen while they trained (particles auto), with each decision."""

    def counts(name: str) -> Quantity:
        return lambda run: [
            (cycle["cycle"], cycle["sparsity"], cycle["waves"][-1][name]) for cycle in run.run.cycles if _waves(cycle)
        ]

    trained = data.trend(counts("trained"), "trained")
    kept = data.trend(counts("kept"), "averaged", style="dashed")
    most = max((wave["trained"] for run in data.runs for cycle in run.run.cycles for wave in _waves(cycle)), default=0)
    numbers = Axis("particles", limits=(0, most + 0.5), ticks=tuple((n, str(n)) for n in range(most + 1)))
    return figures_of(
        "Numbers of particles that were chosen",
        "After each wave of particles, the loss on validation data of single particles and of means of two says what "
        "another wave would save. Particles beyond the dashed curve raised the loss of the mean and were left out.",
        panels_of("", data.axis, numbers, [*trained, *kept]),
        [_decisions(run) for run in data.runs if any(map(_waves, run.run.cycles))],
    )


def _decisions(run: RunAnalyses) -> Table:
    found = [(cycle, wave) for cycle in run.run.cycles for wave in _waves(cycle)]
    columns = {
        "sparse\n%": [f"{100 * cycle['sparsity']:.2f}" for cycle, _ in found],
        "particles": [str(wave["trained"]) for _, wave in found],
        "loss\nsingle": [shown(wave["single"]) for _, wave in found],
        "loss\nof pairs": [shown(wave["pair"]) for _, wave in found],
        "loss\nof the mean": [shown(wave["mean"]) for _, wave in found],
        "predicted\nwith more": [shown(wave["predicted"]) for _, wave in found],
        "saved by\nanother, %": [shown(wave["gain"] and 100 * wave["gain"]) for _, wave in found],
        "decision": [wave["decision"] for _, wave in found],
        "averaged": [str(wave["kept"]) for _, wave in found],
    }
    return Table.of_columns(f"Decisions of {run.name}", list(columns.items()), keys=2)


def _waves(cycle: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return cycle.get("waves") or ()
