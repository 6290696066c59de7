"""Why it works: what can be measured of a run's particles, means and masks."""

from swamp.analysis.analysis import Analysis, Settings, Unit, analyze, read_analysis
from swamp.analysis.connectivity import Barriers, Connection, between, connectivity
from swamp.analysis.cross import Pair, Side, cross
from swamp.analysis.curvature import Curvature, curvature, curvature_at
from swamp.analysis.dynamics import paths
from swamp.analysis.hessian import Hessian, restricted
from swamp.analysis.hull import hull
from swamp.analysis.hutchinson import Estimate, Trace, hutchinson
from swamp.analysis.lanczos import Density, Eigenvalue, Ritz, density, lanczos, top
from swamp.analysis.landscape import landscape
from swamp.analysis.masks import masks
from swamp.analysis.noise import SOURCES, NoiseSettings, Sources
from swamp.analysis.overlaps import overlap_of_runs, overlaps
from swamp.analysis.points import Points, Value
from swamp.analysis.predictions import predictions
from swamp.analysis.space import Plane
from swamp.analysis.subject import Subject
from swamp.analysis.ticket import Found, Instability, Trial, search
from swamp.analysis.trials import Trials

ANALYSES: dict[str, Analysis] = {
    "masks": masks,
    "connectivity": connectivity,
    "predictions": predictions,
    "hull": hull,
    "paths": paths,
    "landscape": landscape,
    "curvature": curvature,
}
"""Name -> analysis, cheap ones first."""

__all__ = [
    "ANALYSES",
    "SOURCES",
    "Analysis",
    "Barriers",
    "Connection",
    "Curvature",
    "Density",
    "Eigenvalue",
    "Estimate",
    "Found",
    "Hessian",
    "Instability",
    "NoiseSettings",
    "Pair",
    "Plane",
    "Points",
    "Ritz",
    "Settings",
    "Side",
    "Sources",
    "Subject",
    "Trace",
    "Trial",
    "Trials",
    "Unit",
    "Value",
    "analyze",
    "between",
    "cross",
    "curvature",
    "curvature_at",
    "density",
    "hutchinson",
    "lanczos",
    "overlap_of_runs",
    "overlaps",
    "read_analysis",
    "restricted",
    "search",
    "top",
]
