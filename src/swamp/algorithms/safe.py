"""SAFE (Lee et al. 2025, arXiv 2506.06866, algorithm 1): training under a sparsity constraint, by ADMM.

Every K steps z becomes the projection of w + u onto sparse weights, and the dual variable u becomes u + w - z: what the
projection sets to zero. In between, the penalty lambda / 2 |w - z + u|^2 draws w to the anchor z - u.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from swamp.algorithms.next_mask import Pruner
from swamp.masks import Mask
from swamp.training import Seed
from swamp.training.average import State
from swamp.training.snapshot import Snapshot


class DualUpdate(NamedTuple):
    """The result of one projection."""

    snapshot: Snapshot
    """The particle with its new anchor."""
    dual: State


def dual_update(
    snapshot: Snapshot,
    dual: State,
    pruner: Pruner,
    dense: Mask,
    nnz: int,
    seed: Seed,
    trainable: Collection[str],
    ties: Mapping[str, str],
) -> DualUpdate:
    """Project w + u and update u.

    Args:
        snapshot: The particle, between two steps.
        dual: u by parameter; empty: zero.
        pruner: Its score and structure define the projection.
        dense: The mask of all prunable weights.
        nnz: Weights that the projection keeps.
        seed: For random scores.
        trainable: Names of the parameters that the penalty draws. Frozen ones count in the projection only.
        ties: See `tied_names`.
    """
    weights = snapshot.weights
    shifted = {n: weights[n] + dual[n].to(weights[n]) if n in dual else weights[n] for n in dense}
    owners = {name: ties.get(name, name) for name in weights}
    mask = pruner.pruned(dense, {n: shifted.get(owners[n], value) for n, value in weights.items()}, nnz, seed).mask
    kept = {name: mask[name].to(value.device) for name, value in shifted.items() if name in trainable}
    anchor = {name: torch.where(own, shifted[name], -shifted[name]) for name, own in kept.items()}
    left = {name: shifted[name].masked_fill(own, 0) for name, own in kept.items()}
    return DualUpdate(replace(snapshot, anchor=anchor), left)
