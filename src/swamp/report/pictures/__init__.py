"""The pictures of a report, in the order of the page. A picture is a function from evidence to numbers."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swamp.report.evidence import Evidence
from swamp.report.picture import Picture
from swamp.report.pictures.barriers import barriers
from swamp.report.pictures.flatness import curvature
from swamp.report.pictures.hull import hull
from swamp.report.pictures.landscape import landscape
from swamp.report.pictures.masks import layers, masks
from swamp.report.pictures.noise import noise
from swamp.report.pictures.outcome import accuracy, cost, particles
from swamp.report.pictures.paths import paths
from swamp.report.pictures.predictions import predictions


@dataclass(frozen=True)
class Chapter:
    """A heading of the page and what draws its pictures; none where the runs have not what it needs."""

    title: str
    draw: Callable[[Evidence], list[Picture]]
    analysis: str | None = None
    """What `swamp analyze` must have made; None: the runs themselves are enough."""
    command: str = ""
    """The command that makes it, where `swamp analyze` does not."""

    def made_by(self, run: Path) -> str:
        """What makes it of a run."""
        name = shlex.quote(str(run))
        return f"swamp {self.command} {name}" if self.command else f"swamp analyze {name} --only {self.analysis}"


CHAPTERS: dict[str, Chapter] = {
    "accuracy": Chapter("Accuracy against sparsity", accuracy),
    "particles": Chapter("Particles and their mean", particles),
    "barrier": Chapter("Barriers", barriers, "connectivity"),
    "curvature": Chapter("Flatness", curvature, "curvature"),
    "hull": Chapter("The hull of the particles", hull, "hull"),
    "noise": Chapter("Sources of noise", noise, "noise", "noise"),
    "landscape": Chapter("Landscape", landscape, "landscape"),
    "paths": Chapter("Paths", paths, "paths"),
    "layers": Chapter("Layers", layers, "masks"),
    "masks": Chapter("Masks", masks, "masks"),
    "predictions": Chapter("Predictions", predictions, "predictions"),
    "cost": Chapter("Cost", cost),
}
"""By the names that `swamp figure --which` knows."""

__all__ = ["CHAPTERS", "Chapter"]
