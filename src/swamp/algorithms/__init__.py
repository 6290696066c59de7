"""The cycle loop, and the methods that are settings of it."""

from swamp.algorithms.backend_choice import backend_of
from swamp.algorithms.cycle import Barrier, Cost, Cycle, Divergence, ParticleRecord, SplitMetrics
from swamp.algorithms.ensembles import ensemble, ensemble_predict, member_seed
from swamp.algorithms.evaluate import barrier
from swamp.algorithms.loop import cycles, train_on
from swamp.algorithms.method import Method
from swamp.algorithms.plan import Plan
from swamp.algorithms.registry import METHODS, method_named
from swamp.algorithms.sparse_model import PlanOptions, SparseModel, prune, retrain
from swamp.algorithms.store import NoStore, Phase, Store

__all__ = [
    "METHODS",
    "Barrier",
    "Cost",
    "Cycle",
    "Divergence",
    "Method",
    "NoStore",
    "ParticleRecord",
    "Phase",
    "Plan",
    "PlanOptions",
    "SparseModel",
    "SplitMetrics",
    "Store",
    "backend_of",
    "barrier",
    "cycles",
    "ensemble",
    "ensemble_predict",
    "member_seed",
    "method_named",
    "prune",
    "retrain",
    "train_on",
]
