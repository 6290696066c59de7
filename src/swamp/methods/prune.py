"""One call that prunes a model."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from swamp.errors import SwampError
from swamp.files import save_tensors
from swamp.methods.cycle import Cycle
from swamp.methods.cycles import cycles
from swamp.methods.plan import Plan
from swamp.particles import Backend
from swamp.sparsity import Mask
from swamp.training import Task, Training


@dataclass(frozen=True, eq=False)
class SparseModel:
    """What pruning gives: a plain module with zeros in it, its mask, and the record of how it came about."""

    model: nn.Module
    mask: Mask
    cycles: tuple[Cycle, ...]

    @property
    def sparsity(self) -> float:
        """1 - kept / prunable."""
        return self.mask.sparsity

    def save(self, path: Path | str) -> None:
        """Write the weights as one safetensors file that `load_state_dict` takes."""
        state = self.model.state_dict()
        self.mask.require_zeros(state)
        save_tensors(Path(path), state)


def prune(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float = 0.95,
    particles: int | Sequence[int] = 4,
    method: str = "swamp",
    training: Training | None = None,
    backend: Backend | str | None = None,
    **options: Any,
) -> SparseModel:
    """Prune `model` on `task` and return a sparse copy; `model` keeps its weights.

    backend: what trains the particles, or its name, e.g. "threads" (default: chosen by timing).
    options: any other field of swamp.Plan, e.g. seed=1, ticket_epochs=2, exclude=("head.*",).
    Raises SwampError for what cannot be, before any training; Diverged where a training blows up.
    """
    counts = (particles,) if isinstance(particles, int) else tuple(particles)
    try:
        plan = Plan(method=method, sparsity=sparsity, particles=counts, **options)
    except TypeError as error:
        raise SwampError(f"{error}. The options of prune are the fields of swamp.Plan.") from error
    record = tuple(cycles(model, task, plan, training or Training(), backend=backend))
    sparse = copy.deepcopy(model)
    sparse.load_state_dict(dict(record[-1].weights))
    return SparseModel(sparse, record[-1].mask, record)
