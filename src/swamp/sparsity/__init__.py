"""Which weights live. Knows torch and nothing of training."""

from swamp.sparsity.allocate import ALLOCATIONS, allocation_named, apportion
from swamp.sparsity.groups import Groups
from swamp.sparsity.heads import head_densities
from swamp.sparsity.hold import hold, hold_gradients, leaves_zeros
from swamp.sparsity.mask import Mask
from swamp.sparsity.schedule import MOST_CYCLES, Schedule, densities_by_rate, densities_to, particles_for
from swamp.sparsity.scope import Scope
from swamp.sparsity.shrink import emptied, shrink
from swamp.sparsity.spread import gathered, is_spread, own, spread_like, whole
from swamp.sparsity.structure import STRUCTURES, Structure, check_structure, structure_named

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
