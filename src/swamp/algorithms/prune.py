"""One call that prunes a model."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from swamp.algorithms.cycle import Cycle
from swamp.algorithms.loop import cycles, train_on
from swamp.algorithms.plan import Plan
from swamp.backends import Backend, Ticket
from swamp.errors import SwampError
from swamp.files import save_tensors
from swamp.masks import Mask
from swamp.training import Task, Training


@dataclass(frozen=True, eq=False)
class SparseModel:
    """What pruning gives: a plain module with zeros in it, its mask, and the record of how it came about."""

    model: nn.Module
    mask: Mask
    cycles: tuple[Cycle, ...]

    @property
    def sparsity(self) -> float:
        """1 - nnz / prunable."""
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
    # Whatever else it is, the plan says what was expected.
    counts = tuple(particles) if isinstance(particles, Iterable) else (particles,)
    plan = _plan(method=method, sparsity=sparsity, particles=counts, **options)
    return _sparse(model, tuple(cycles(model, task, plan, training or Training(), backend=backend)))


def retrain(
    model: nn.Module,
    task: Task,
    ticket: Ticket,
    mask: Mask,
    *,
    particles: int = 4,
    method: str = "swamp",
    training: Training | None = None,
    backend: Backend | str | None = None,
    **options: Any,
) -> SparseModel:
    """Train `mask`, however it was found, from `ticket` by one cycle of `method`; `model` keeps its weights.

    Is it the mask that is good, or how it was trained? Give one mask to two methods, or two masks to one. The batch
    orders are those of cycle 1 of a run with this seed. Arguments and errors are those of `prune`.
    """
    how = training or Training()
    epochs = ticket.steps / task.train.steps(how.batch_size)
    densities = (1.0, mask.density) if mask.density < 1 else (1.0,)
    plan = _plan(method=method, densities=densities, particles=(particles,), **{"ticket_epochs": epochs, **options})
    masks = {len(densities) - 1: mask}
    return _sparse(model, tuple(train_on(masks, ticket, model, task, plan, how, backend=backend)))


def _plan(**options: Any) -> Plan:
    try:
        return Plan(**options)
    except TypeError as error:
        raise SwampError(f"{error}. The options are the fields of swamp.Plan.") from error


def _sparse(model: nn.Module, record: tuple[Cycle, ...]) -> SparseModel:
    sparse = copy.deepcopy(model)
    sparse.load_state_dict(dict(record[-1].weights))
    return SparseModel(sparse, record[-1].mask, record)
