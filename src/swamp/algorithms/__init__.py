"""The cycle loop, and the methods that are settings of it."""

from swamp.algorithms.cycle import Barrier, Cost, Cycle, ParticleRecord, SplitMetrics
from swamp.algorithms.ensembles import ensemble, ensemble_predict
from swamp.algorithms.loop import train_on
from swamp.algorithms.method import Method
from swamp.algorithms.plan import Plan
from swamp.algorithms.registry import METHODS
from swamp.algorithms.sparse_model import SparseModel

__all__ = [
    "METHODS",
    "Barrier",
    "Cost",
    "Cycle",
    "Method",
    "ParticleRecord",
    "Plan",
    "SparseModel",
    "SplitMetrics",
    "ensemble",
    "ensemble_predict",
    "train_on",
]
