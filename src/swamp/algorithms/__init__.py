"""The cycle loop, and the methods that are settings of it."""

from swamp.algorithms.cycle import Break, Cost, Cycle, Measured, ParticleRecord
from swamp.algorithms.cycles import cycles, cycles_in_step, train_on
from swamp.algorithms.ensemble import ensemble, ensemble_predict, member_seed
from swamp.algorithms.method import Method
from swamp.algorithms.plan import Plan
from swamp.algorithms.prune import SparseModel, prune, retrain
from swamp.algorithms.registry import METHODS, method_named
from swamp.algorithms.stability import Barrier, barrier
from swamp.algorithms.store import NoStore, Phase, Store
from swamp.algorithms.trainer import backend_of

__all__ = [
    "METHODS",
    "Barrier",
    "Break",
    "Cost",
    "Cycle",
    "Measured",
    "Method",
    "NoStore",
    "ParticleRecord",
    "Phase",
    "Plan",
    "SparseModel",
    "Store",
    "backend_of",
    "barrier",
    "cycles",
    "cycles_in_step",
    "ensemble",
    "ensemble_predict",
    "member_seed",
    "method_named",
    "prune",
    "retrain",
    "train_on",
]
