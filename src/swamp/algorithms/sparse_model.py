"""One call that prunes a model, and its result."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from torch import nn

from swamp.algorithms.cycle import Cycle
from swamp.algorithms.loop import cycles, train_on
from swamp.algorithms.plan import OnDivergence, Plan
from swamp.backends import Backend, Ticket
from swamp.errors import SwampError
from swamp.files import save_tensors
from swamp.masks import Mask
from swamp.training import Task, Training
from swamp.training.mask_updates import Dynamic


@dataclass(frozen=True, eq=False)
class SparseModel:
    """The result of pruning: a plain module with zeros in it, its mask, and the record of every cycle."""

    model: nn.Module
    mask: Mask
    cycles: tuple[Cycle, ...]

    @property
    def sparsity(self) -> float:
        """1 - nnz / prunable."""
        return self.mask.sparsity

    def save(self, path: Path | str) -> None:
        """Write the weights as one safetensors file that `load_state_dict` accepts.

        Raises:
            MaskError: A weight off the mask is not zero, because `model` was changed.
        """
        state = self.model.state_dict()
        self.mask.require_zeros(state)
        save_tensors(Path(path), state)

    def __repr__(self) -> str:
        # The model itself may print thousands of lines.
        last = self.cycles[-1]
        return (
            f"SparseModel({type(self.model).__name__}, {self.mask!r},\n"
            f"  {len(self.cycles)} cycles, {last.total.steps:,} steps, test {_metrics(last)})"
        )

    def _repr_html_(self) -> str:
        """A table of the cycles, for notebooks."""
        rows = "".join(
            f"<tr><td>{cycle.index}</td><td>{100 * cycle.sparsity:.2f} %</td><td>{escape(_metrics(cycle))}</td></tr>"
            for cycle in self.cycles
        )
        head = "<tr><th>cycle</th><th>sparsity</th><th>test</th></tr>"
        return f"<b>{escape(type(self.model).__name__)}</b>: {escape(repr(self.mask))}<table>{head}{rows}</table>"


def _metrics(cycle: Cycle) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in cycle.metrics.test.items())


class PlanOptions(TypedDict, total=False):
    """The fields of `Plan` that `prune` and `retrain` take as keyword arguments; `Plan` documents them."""

    cycles: int
    prune_fraction: tuple[float, ...]
    densities: tuple[float, ...]
    ticket_epochs: float
    seed: int
    score: str
    score_examples: int
    allocation: str
    structure: str
    min_per_layer: int
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    prune_output_layer: Literal["auto", "yes", "no"]
    retrain: str
    retrain_epochs: int
    dynamic: Dynamic
    on_divergence: OnDivergence
    barrier_points: int
    barrier_threshold: float
    evaluation_examples: int


def prune(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float = 0.95,
    particles: int | Sequence[int] = 4,
    method: str = "swamp",
    training: Training | None = None,
    backend: Backend | str | None = None,
    **options: Unpack[PlanOptions],
) -> SparseModel:
    """Prune a copy of `model` on `task`.

    Args:
        model: Any module; its weights are the initial weights, and stay as they are.
        task: Data, loss and metrics, see `Task.of`.
        sparsity: Fraction of the prunable weights to remove, in [0, 1).
        particles: Particles N a cycle; a sequence gives one number per cycle, the last one repeats.
        method: Name of the method: "swamp", "imp", "lrr" ...; `swamp list methods` has all.
        training: How each particle is trained (default: `Training()`).
        backend: What trains the particles: a backend, or its name, e.g. "threads" (default: the fastest by timing).
        **options: Any other field of `Plan`, e.g. seed=1, ticket_epochs=2, exclude=("head.*",).

    Returns:
        The sparse copy with its mask and the record of every cycle.

    Raises:
        SwampError: Before any training: an option is not possible, or data or weights are not finite.
        Diverged: A training diverged, and `on_divergence` has no way to continue.

    Example:
        >>> import torch, swamp
        >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> y = (x.sum(1) > 0).long()
        >>> task = swamp.Task.of(train=(x[:48], y[:48]), test=(x[48:], y[48:]))
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> how = swamp.Training(epochs=4, batch_size=16)
        >>> sparse = swamp.prune(model, task, sparsity=0.5, particles=2, training=how, barrier_points=0)
        >>> sparse.mask.nnz, sparse.mask.prunable
        (80, 160)

    Source:
        Choi et al., "Sparse Weight Averaging with Multiple Particles for Iterative Magnitude Pruning", ICLR 2024.
    """
    # Plan itself says what is wrong with a count.
    counts = tuple(particles) if isinstance(particles, Iterable) else (particles,)
    plan = _plan(options, method=method, sparsity=sparsity, particles=counts)
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
    **options: Unpack[PlanOptions],
) -> SparseModel:
    """Train `mask`, however it was found, from `ticket` by one cycle of `method`.

    This separates the mask from its training: give one mask to two methods, or two masks to one method. Batch orders
    are the ones of cycle 1 of a run with this seed.

    Args:
        model: Architecture; its weights stay as they are.
        task: Data, loss and metrics.
        ticket: Weights at which the particles start.
        mask: Weights that are trained; all others are zero.
        particles: Number of particles N.
        method: A method that rewinds to a ticket, such as "swamp" or "imp".
        training: See `prune`.
        backend: See `prune`.
        **options: See `prune`.

    Returns:
        The trained sparse copy; its record has one cycle.

    Raises:
        SwampError: See `prune`; also for a method that does not rewind.
        Diverged: See `prune`.
    """
    how = training or Training()
    epochs = ticket.steps / task.train.steps(how.batch_size)
    densities = (1.0, mask.density) if mask.density < 1 else (1.0,)
    given: PlanOptions = {"ticket_epochs": epochs, **options, "densities": densities}
    plan = _plan(given, method=method, particles=(particles,))
    masks = {len(densities) - 1: mask}
    return _sparse(model, tuple(train_on(masks, ticket, model, task, plan, how, backend=backend)))


def _plan(options: PlanOptions, *, method: str, particles: tuple[int, ...], sparsity: float = 0.95) -> Plan:
    try:
        return Plan(method=method, sparsity=sparsity, particles=particles, **options)
    except TypeError as error:
        raise SwampError(f"{error}. The options are the fields of swamp.Plan.") from error


def _sparse(model: nn.Module, record: tuple[Cycle, ...]) -> SparseModel:
    sparse = copy.deepcopy(model)
    sparse.load_state_dict(dict(record[-1].weights))
    return SparseModel(sparse, record[-1].mask, record)
