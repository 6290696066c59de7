"""Masks: which weights are active, how many each layer keeps, and in which pattern. Depends on torch only."""

from swamp.masks.allocation import ALLOCATIONS
from swamp.masks.dtensor import full_tensor, gathered_copy, is_sharded, shard_like, to_local
from swamp.masks.enforce import hold, hold_gradients, preserves_zeros
from swamp.masks.heads import head_densities
from swamp.masks.mask import Mask
from swamp.masks.patterns import STRUCTURES, NMPattern, structure_named
from swamp.masks.pruning import empty_layer_warning, prune_mask
from swamp.masks.schedule import MAX_CYCLES, Schedule, densities_by_fraction, densities_to, particles_for
from swamp.masks.scope import Scope

__all__ = [
    "ALLOCATIONS",
    "MAX_CYCLES",
    "STRUCTURES",
    "Mask",
    "NMPattern",
    "Schedule",
    "Scope",
    "densities_by_fraction",
    "densities_to",
    "empty_layer_warning",
    "full_tensor",
    "gathered_copy",
    "head_densities",
    "hold",
    "hold_gradients",
    "is_sharded",
    "particles_for",
    "preserves_zeros",
    "prune_mask",
    "shard_like",
    "structure_named",
    "to_local",
]
