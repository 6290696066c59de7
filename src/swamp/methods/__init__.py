"""The cycle loop, and the methods that are settings of it."""

from swamp.methods.cycle import Break, Cost, Cycle, Measured, ParticleRecord, particle_index
from swamp.methods.cycles import cycles, cycles_in_step, train_on
from swamp.methods.ensemble import ensemble, ensemble_predict, member_seed
from swamp.methods.method import Method
from swamp.methods.plan import Plan
from swamp.methods.prune import SparseModel, prune, retrain
from swamp.methods.registry import METHODS, method_named
from swamp.methods.stability import Barrier, barrier
from swamp.methods.store import NoStore, Phase, Store
from swamp.methods.trainer import backend_of

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
    "particle_index",
    "prune",
    "retrain",
    "train_on",
]
