"""The figures of a report, in the order of the page."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swamp.report.figure_description import Figure
from swamp.report.figures.averaging import averaging_figures, wave_figures
from swamp.report.figures.loss_landscape import (
    barrier_figures,
    curvature_figures,
    landscape_figures,
    trajectory_figures,
)
from swamp.report.figures.mask_evolution import layer_figures, mask_figures
from swamp.report.figures.outcome import accuracy_figure, cost_figures, particle_figures, prediction_figures
from swamp.report.figures.spread import hull_figures, noise_figures
from swamp.report.report_data import ReportData


@dataclass(frozen=True)
class Section:
    """A section of the page: a title, and the function that builds its figures (none if the data are missing)."""

    title: str
    build: Callable[[ReportData], list[Figure]]
    analysis: str | None = None
    """The analysis that the figures need; None: the runs alone are enough."""
    command: str = ""
    """The command that makes the analysis; empty: `swamp analyze`."""
    needs: str = "no cycle had several particles."
    """Why runs alone may have nothing to draw."""

    def made_by(self, run: Path) -> str:
        """The command line that makes the analysis of a run."""
        name = shlex.quote(str(run))
        return f"swamp {self.command} {name}" if self.command else f"swamp analyze {name} --only {self.analysis}"


SECTIONS: dict[str, Section] = {
    "accuracy": Section("Accuracy against sparsity", lambda data: [accuracy_figure(data.comparison)]),
    "particles": Section("Particles and their mean", particle_figures),
    "barrier": Section("Barriers", barrier_figures, "barriers"),
    "curvature": Section("Flatness", curvature_figures, "curvature"),
    "hull": Section("Convex hull of the particles", hull_figures, "hull"),
    "waves": Section("Chosen numbers of particles", wave_figures, needs="no run has --particles auto."),
    "averaging": Section("Value of one more particle", averaging_figures, "averaging"),
    "noise": Section("Sources of noise", noise_figures, "noise", "noise"),
    "landscape": Section("Loss landscape", landscape_figures, "landscape"),
    "paths": Section("Trajectories", trajectory_figures, "trajectories"),
    "layers": Section("Layers", layer_figures, "masks"),
    "masks": Section("Masks", mask_figures, "masks"),
    "predictions": Section("Predictions", prediction_figures, "predictions"),
    "cost": Section("Cost", cost_figures),
}
"""Sections by the names of `swamp figure --which`."""

__all__ = ["SECTIONS", "Section"]
