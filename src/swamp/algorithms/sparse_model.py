"""SparseModel: the result of pruning; and the options that a call takes beside its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, TypedDict

from torch import nn

from swamp.algorithms.cycle import Cycle
from swamp.algorithms.plan import OnDivergence
from swamp.files import save_tensors
from swamp.masks import Mask
from swamp.model_copy import copied_model
from swamp.training.mask_updates import Dynamic
from swamp.training.module_extra_state import as_tensors, load_state


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

    @classmethod
    def of(cls, model: nn.Module, record: Sequence[Cycle]) -> "SparseModel":
        """A copy of `model` with the weights and the mask of the last cycle of `record`."""
        sparse = copied_model(model)
        load_state(sparse, record[-1].weights)
        return cls(sparse, record[-1].mask, tuple(record))

    def save(self, path: Path | str) -> None:
        """Write the weights as one safetensors file that `load_state_dict` accepts.

        Raises:
            MaskError: A weight off the mask is not zero, because `model` was changed.
        """
        state = as_tensors(self.model.state_dict())
        self.mask.require_zeros(state)
        save_tensors(Path(path), state)

    def __repr__(self) -> str:
        # The model itself may print thousands of lines.
        known = f"SparseModel({type(self.model).__name__}, {self.mask!r}"
        if not self.cycles:
            return f"{known})"
        last = self.cycles[-1]
        count = f"{len(self.cycles)} cycle{'s' if len(self.cycles) > 1 else ''}"
        return f"{known},\n  {count}, {last.total.steps:,} steps, test {_metrics(last)})"

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

    max_particles: int
    wave: int
    least_gain: float
    branch: float
    cycles: int
    prune_fraction: float | Sequence[float]
    densities: float | Sequence[float]
    ticket_epochs: float
    seed: int
    score: str
    score_examples: int
    allocation: str
    structure: str
    min_per_layer: int | None
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    prune_output_layer: Literal["auto", "yes", "no"]
    retrain: str
    retrain_epochs: int
    last_epochs: int
    dynamic: Dynamic
    on_divergence: OnDivergence
    barrier_points: int
    barrier_threshold: float
    evaluation_examples: int
