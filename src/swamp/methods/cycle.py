"""Cycle: the record of one train-average-evaluate round, and the sparse model it made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from swamp.errors import SwampError
from swamp.methods.stability import Barrier
from swamp.sparsity import Mask
from swamp.training import State

Metrics = dict[str, float]


@dataclass(frozen=True)
class Cost:
    """What training took."""

    steps: int = 0
    """Optimizer steps of all particles."""
    samples: int = 0
    """Training examples seen."""
    operations: float = 0.0
    """Floating-point operations of training and scoring, zeros left out: see training/operations.py."""
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.steps + other.steps,
            self.samples + other.samples,
            self.operations + other.operations,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Measured:
    """Metrics on each split; `validation` is None where nothing was held out."""

    train: Metrics
    validation: Metrics | None
    test: Metrics


@dataclass(frozen=True)
class ParticleRecord:
    """One particle in the record of its cycle."""

    measured: Measured
    steps: int
    seconds: float
    loss: float
    """Mean training loss of its last epoch."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self.measured), "steps": self.steps, "seconds": self.seconds, "loss": self.loss}


@dataclass(frozen=True, eq=False)
class Cycle:
    """One cycle, finished. `weights` under `mask` is a usable sparse model."""

    index: int
    mask: Mask
    weights: State
    """State dict of the cycle's model (of an ensemble: of its first member), normalisation statistics included."""
    density_of_all: float
    measured: Measured
    particles: tuple[ParticleRecord, ...]
    barrier: Barrier | None
    stale: Metrics | None
    """Test metrics with running statistics as averaged, not re-estimated: what forgetting it would cost. None where
    nothing was averaged or the model has no BatchNorm."""
    cost: Cost
    """Of this cycle alone; the first one has the ticket's too."""
    total: Cost
    """Of all that this model needed: the cycles before it too, where it is made of them."""
    warnings: tuple[str, ...] = ()
    heads: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Density of each attention head, by attention module: see sparsity/heads.py."""

    @property
    def sparsity(self) -> float:
        """1 - kept / prunable."""
        return self.mask.sparsity

    def to_json(self) -> dict[str, Any]:
        """The line of metrics.jsonl: plain values, without weights and mask."""
        return {
            "cycle": self.index,
            "sparsity": self.sparsity,
            "density": {
                "prunable": self.mask.density,
                "all": self.density_of_all,
                "layers": self.mask.density_by_layer,
                "heads": dict(self.heads),
            },
            "kept": self.mask.kept,
            "prunable": self.mask.prunable,
            **asdict(self.measured),
            "particles": [particle.to_json() for particle in self.particles],
            "barrier": asdict(self.barrier) if self.barrier else None,
            "stale": self.stale,
            **asdict(self.cost),
            "total": asdict(self.total),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, line: dict[str, Any], mask: Mask, weights: State) -> "Cycle":
        """The cycle that `to_json` described, with its mask and weights. Raises SwampError for anything else."""
        try:
            return cls._of(line, mask, weights)
        except (KeyError, TypeError, AttributeError) as error:
            raise SwampError(
                f"the record of a cycle is damaged ({type(error).__name__}: {error}). Restore it."
            ) from error

    @classmethod
    def _of(cls, line: dict[str, Any], mask: Mask, weights: State) -> "Cycle":
        return cls(
            line["cycle"],
            mask,
            weights,
            line["density"]["all"],
            _measured(line),
            tuple(ParticleRecord(_measured(p), p["steps"], p["seconds"], p["loss"]) for p in line["particles"]),
            Barrier(**line["barrier"]) if line["barrier"] else None,
            line["stale"],
            Cost(line["steps"], line["samples"], line["operations"], line["seconds"]),
            Cost(**line["total"]),
            tuple(line["warnings"]),
            line["density"].get("heads", {}),
        )


def _measured(fields: dict[str, Any]) -> Measured:
    return Measured(fields["train"], fields["validation"], fields["test"])
