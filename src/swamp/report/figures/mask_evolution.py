"""Figures of the masks of one run: the density of its layers, and the changes from cycle to cycle."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swamp.report.figure_description import Axis, Curve, Figure, Panel, figures_of, panels_of, percent_sparse
from swamp.report.report_data import ReportData, RunAnalyses
from swamp.report.tables import Table


def layer_figures(data: ReportData) -> list[Figure]:
    """The density of each layer against sparsity, a panel per run."""
    axis = Axis("remaining weights (%)", log=True)
    runs = [(run, found) for run in data.one_per_label("masks") if (found := run.cycles("masks"))]
    return figures_of(
        "Remaining weights of each layer",
        "A layer whose curve falls faster than the others is emptied first. A layer without weights blocks the signal.",
        [Panel(run.name, data.axis, axis, tuple(_layer_curves(found))) for run, found in runs],
        [_layer_table(run, found[-1]) for run, found in runs],
    )


def _layer_curves(found: Sequence[Mapping[str, Any]]) -> Iterator[Curve]:
    x = tuple(1 - record["sparsity"] for record in found)
    for index, name in enumerate(found[-1]["layers"]):
        densities = [record["layers"].get(name, {}).get("density") for record in found]
        # 0 cannot be shown on a logarithmic axis: the curve ends.
        y = tuple(100 * density if density else None for density in densities)
        yield Curve(name, x, y, index, notes=tuple(map(percent_sparse, x)))


def _layer_table(run: RunAnalyses, record: Mapping[str, Any]) -> Table:
    dead: Mapping[str, Any] = record.get("dead") or {}
    rows = tuple(
        (name, f"{100 * layer['density']:.2f}", f"{layer['nnz']:,}", f"{layer['size']:,}", _dead_units(dead.get(name)))
        for name, layer in record["layers"].items()
    )
    title = f"{run.name} at {100 * record['sparsity']:.2f} %"
    return Table(title, ("layer", "remaining (%)", "remaining weights", "weights", "dead units"), rows)


def _dead_units(units: Mapping[str, int | None] | None) -> str:
    """The number of inputs that no weight reads, and of outputs that no weight feeds."""
    if units is None:
        return "–"
    return ", ".join(f"{count} {name}" for name, count in units.items() if count is not None)


def mask_figures(data: ReportData) -> list[Figure]:
    """The share of weights kept per cycle, the signs of survivors, and the rank of their magnitudes."""
    kept = data.trend(lambda run: run.series("masks", "kept_of_before"), factor=100)
    signs = data.trend(lambda run: run.series("masks", "signs", "ticket"), "as in the ticket", factor=100)
    signs += data.trend(
        lambda run: run.series("masks", "signs", "before"), "as one cycle before", factor=100, style="dashed"
    )
    ranks = data.trend(lambda run: run.series("masks", "magnitude_rank"))
    return figures_of(
        "Changes of the mask between cycles, and since the ticket",
        "If survivors have the ticket's signs and the ranks of its magnitudes, the mask was largely determined by "
        "the ticket. Where signs still change from cycle to cycle, training has not converged.",
        [
            *panels_of("Survivors of the cycle before", data.axis, Axis("kept (%)"), kept),
            *panels_of("Survivors that keep their sign", data.axis, Axis("same sign (%)"), signs),
            *panels_of("Magnitude now and in the ticket", data.axis, Axis("rank correlation"), ranks),
        ],
    )
