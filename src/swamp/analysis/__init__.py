"""Diagnostics of runs: barriers, curvature, hull, landscape, trajectories, masks, predictions and ablations."""

from swamp.analysis.ablations import FACTORS, AblationSettings, ParticleAblation
from swamp.analysis.analysis_tasks import Analysis, AnalysisSettings, AnalysisTask, analyze, read_analysis
from swamp.analysis.barriers import Barriers, Interpolation, barrier_tasks, interpolate_models
from swamp.analysis.curvature import Curvature, curvature_at, curvature_tasks
from swamp.analysis.hessian import Hessian, restricted
from swamp.analysis.hessian_trace import Trace, TraceEstimate, hutchinson
from swamp.analysis.hull import hull_tasks
from swamp.analysis.landscape import Plane, landscape_tasks
from swamp.analysis.mask_overlap import compare_masks, mask_tasks
from swamp.analysis.mask_training import MaskSource, MaskTraining, cross_train, mask_trainings, shared_densities
from swamp.analysis.point_evaluator import PointEvaluator, PointMetrics
from swamp.analysis.predictions import prediction_tasks
from swamp.analysis.rewind_search import (
    InstabilityAnalysis,
    RewindSearchResult,
    RewindTrial,
    TrialLog,
    search_rewind_step,
)
from swamp.analysis.run_data import RunData
from swamp.analysis.spectrum import (
    Eigenvalue,
    RitzValues,
    SpectralDensity,
    lanczos,
    spectral_density,
    top_eigenvalues,
)
from swamp.analysis.trajectories import trajectory_tasks
from swamp.analysis.weight_space import LinearCombination

ANALYSES: dict[str, Analysis] = {
    "masks": mask_tasks,
    "barriers": barrier_tasks,
    "predictions": prediction_tasks,
    "hull": hull_tasks,
    "trajectories": trajectory_tasks,
    "landscape": landscape_tasks,
    "curvature": curvature_tasks,
}
"""Name -> analysis, cheap ones first."""

__all__ = [
    "ANALYSES",
    "FACTORS",
    "AblationSettings",
    "Analysis",
    "AnalysisSettings",
    "AnalysisTask",
    "Barriers",
    "Curvature",
    "Eigenvalue",
    "Hessian",
    "InstabilityAnalysis",
    "Interpolation",
    "LinearCombination",
    "MaskSource",
    "MaskTraining",
    "ParticleAblation",
    "Plane",
    "PointEvaluator",
    "PointMetrics",
    "RewindSearchResult",
    "RewindTrial",
    "RitzValues",
    "RunData",
    "SpectralDensity",
    "Trace",
    "TraceEstimate",
    "TrialLog",
    "analyze",
    "compare_masks",
    "cross_train",
    "curvature_at",
    "hutchinson",
    "interpolate_models",
    "lanczos",
    "mask_trainings",
    "read_analysis",
    "restricted",
    "search_rewind_step",
    "shared_densities",
    "spectral_density",
    "top_eigenvalues",
]
