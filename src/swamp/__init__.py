"""swamp: sparse weight averaging with multiple particles, for iterative magnitude pruning in PyTorch."""

import random
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swamp.algorithms import Cycle, Plan, SparseModel
    from swamp.api import cycles, load_run, prune, retrain, transfer
    from swamp.backends import Particle, Sequential, Ticket
    from swamp.errors import Diverged, Interrupted, MaskError, SwampError
    from swamp.masks import Mask, Scope, hold
    from swamp.runtime import export, load
    from swamp.training import Seed, Task, TensorData, TokenData, Training

__version__ = "0.2.0"

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
    "TokenData",
    "Training",
    "cycles",
    "export",
    "hold",
    "load",
    "load_run",
    "prune",
    "retrain",
    "transfer",
]

_ROOMS: dict[str, tuple[str, ...]] = {
    "errors": (
        "Diverged",
        "Interrupted",
        "MaskError",
        "SwampError",
    ),
    "runtime": ("export", "load"),
    "files": (),
    "algorithms": (
        "Cycle",
        "Plan",
        "SparseModel",
    ),
    "api": (
        "cycles",
        "load_run",
        "prune",
        "retrain",
        "transfer",
    ),
    "backends": (
        "Particle",
        "Sequential",
        "Ticket",
    ),
    "scores": (),
    "masks": (
        "Mask",
        "Scope",
        "hold",
    ),
    "training": (
        "Seed",
        "Task",
        "TensorData",
        "TokenData",
        "Training",
    ),
}


def __getattr__(name: str) -> Any:
    # A name is fetched when it is asked for: who only loads an exported network imports nothing of training.
    for room, names in _ROOMS.items():
        if name == room:
            return _imported(room)
        if name in names:
            return getattr(_imported(room), name)
    raise AttributeError(f"module 'swamp' has no attribute {name!r}")


def _imported(room: str) -> ModuleType:
    # rich, which progress uses, draws from Python's global generator when it is imported.
    state = random.getstate()
    try:
        return import_module(f"swamp.{room}")
    finally:
        random.setstate(state)


def __dir__() -> list[str]:
    return __all__
