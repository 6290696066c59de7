"""Masks: which weights are active, how many each layer keeps, and in which pattern. Depends on torch only."""

from swamp.masks.enforce import hold, hold_gradients
from swamp.masks.mask import Mask
from swamp.masks.patterns import NMPattern
from swamp.masks.pruning import prune_mask
from swamp.masks.schedule import Schedule, densities_by_fraction, densities_to
from swamp.masks.scope import Scope

__all__ = [
    "Mask",
    "NMPattern",
    "Schedule",
    "Scope",
    "densities_by_fraction",
    "densities_to",
    "hold",
    "hold_gradients",
    "prune_mask",
]
