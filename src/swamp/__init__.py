"""swamp: sparse weight averaging with multiple particles, for iterative magnitude pruning in PyTorch."""

from swamp.errors import Diverged, Interrupted, MaskError, SwampError
from swamp.methods import Cycle, Plan, SparseModel, cycles, prune, retrain
from swamp.particles import Particle, Sequential, Ticket
from swamp.sparsity import Mask, Scope, hold
from swamp.training import Seed, Task, TensorData, Training

__version__ = "0.1.0"

__all__ = [
    "Cycle",
    "Diverged",
    "Interrupted",
    "Mask",
    "MaskError",
    "Particle",
    "Plan",
    "Scope",
    "Seed",
    "Sequential",
    "SparseModel",
    "SwampError",
    "Task",
    "TensorData",
    "Ticket",
    "Training",
    "cycles",
    "hold",
    "prune",
    "retrain",
]
