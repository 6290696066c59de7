"""Which weights live. Knows torch and nothing of training."""

from swamp.masks.allocate import ALLOCATIONS, allocation_named, apportion
from swamp.masks.groups import Groups
from swamp.masks.heads import head_densities
from swamp.masks.hold import hold, hold_gradients, leaves_zeros
from swamp.masks.mask import Mask
from swamp.masks.schedule import MOST_CYCLES, Schedule, densities_by_rate, densities_to, particles_for
from swamp.masks.scope import Scope
from swamp.masks.shrink import emptied, shrink
from swamp.masks.spread import gathered, is_spread, own, spread_like, whole
from swamp.masks.structure import STRUCTURES, Structure, check_structure, structure_named

__all__ = [
    "ALLOCATIONS",
    "MOST_CYCLES",
    "STRUCTURES",
    "Groups",
    "Mask",
    "Schedule",
    "Scope",
    "Structure",
    "allocation_named",
    "apportion",
    "check_structure",
    "densities_by_rate",
    "densities_to",
    "emptied",
    "gathered",
    "head_densities",
    "hold",
    "hold_gradients",
    "is_spread",
    "leaves_zeros",
    "own",
    "particles_for",
    "shrink",
    "spread_like",
    "structure_named",
    "whole",
]
