"""Diagnostics of runs: barriers, curvature, hull, landscape, trajectories, masks, predictions and ablations."""

from swamp.analysis.analysis_tasks import Analysis
from swamp.analysis.averaging_gain import averaging_tasks
from swamp.analysis.barriers import barrier_tasks, interpolate_models
from swamp.analysis.curvature import curvature_tasks
from swamp.analysis.hessian import Hessian
from swamp.analysis.hessian_trace import hutchinson
from swamp.analysis.hull import hull_tasks
from swamp.analysis.landscape import Plane, landscape_tasks
from swamp.analysis.mask_overlap import compare_masks, mask_tasks
from swamp.analysis.predictions import prediction_tasks
from swamp.analysis.rewind_search import search_rewind_step
from swamp.analysis.trajectories import trajectory_tasks

ANALYSES: dict[str, Analysis] = {
    "masks": mask_tasks,
    "barriers": barrier_tasks,
    "predictions": prediction_tasks,
    "hull": hull_tasks,
    "averaging": averaging_tasks,
    "trajectories": trajectory_tasks,
    "landscape": landscape_tasks,
    "curvature": curvature_tasks,
}
"""Name -> analysis, cheap ones first."""

__all__ = [
    "Hessian",
    "Plane",
    "compare_masks",
    "hutchinson",
    "interpolate_models",
    "search_rewind_step",
]
