"""The figures of a report, in the order of the page."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swamp.report.figure_description import Figure
from swamp.report.figures.loss_landscape import barriers, curvature, landscape, trajectories
from swamp.report.figures.mask_evolution import layers, masks
from swamp.report.figures.outcome import accuracy, cost, particles, predictions
from swamp.report.figures.spread import hull, noise
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

    def made_by(self, run: Path) -> str:
        """The command line that makes the analysis of a run."""
        name = shlex.quote(str(run))
        return f"swamp {self.command} {name}" if self.command else f"swamp analyze {name} --only {self.analysis}"


SECTIONS: dict[str, Section] = {
    "accuracy": Section("Accuracy against sparsity", accuracy),
    "particles": Section("Particles and their mean", particles),
    "barrier": Section("Barriers", barriers, "barriers"),
    "curvature": Section("Flatness", curvature, "curvature"),
    "hull": Section("Convex hull of the particles", hull, "hull"),
    "noise": Section("Sources of noise", noise, "noise", "noise"),
    "landscape": Section("Loss landscape", landscape, "landscape"),
    "paths": Section("Trajectories", trajectories, "trajectories"),
    "layers": Section("Layers", layers, "masks"),
    "masks": Section("Masks", masks, "masks"),
    "predictions": Section("Predictions", predictions, "predictions"),
    "cost": Section("Cost", cost),
}
"""Sections by the names of `swamp figure --which`."""

__all__ = ["SECTIONS", "Section"]
