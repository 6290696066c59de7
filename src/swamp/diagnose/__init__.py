"""Why it works: what can be measured of a run's particles, means and masks."""

from swamp.diagnose.analysis import Analysis, Settings, Unit, analyze, read_analysis
from swamp.diagnose.connectivity import Barriers, Connection, between, connectivity
from swamp.diagnose.cross import Pair, Side, cross
from swamp.diagnose.curvature import Curvature, curvature, curvature_at
from swamp.diagnose.dynamics import paths
from swamp.diagnose.hessian import Hessian, restricted
from swamp.diagnose.hull import hull
from swamp.diagnose.hutchinson import Estimate, Trace, hutchinson
from swamp.diagnose.lanczos import Density, Eigenvalue, Ritz, density, lanczos, top
from swamp.diagnose.landscape import landscape
from swamp.diagnose.masks import masks
from swamp.diagnose.noise import SOURCES, NoiseSettings, Sources
from swamp.diagnose.overlaps import overlap_of_runs, overlaps
from swamp.diagnose.points import Points, Value
from swamp.diagnose.predictions import predictions
from swamp.diagnose.space import Plane
from swamp.diagnose.subject import Subject
from swamp.diagnose.ticket import Found, Instability, Trial, search
from swamp.diagnose.trials import Trials

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
