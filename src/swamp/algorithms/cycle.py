"""Cycle: the record of one round of training, averaging and evaluation, and the sparse model it made."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from html import escape
from typing import Any, Literal

from swamp.backends.ticket import TRUNK
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.training.average import State
from swamp.training.metrics import highest

Metrics = dict[str, float]


@dataclass(frozen=True)
class Cost:
    """The cost of training."""

    steps: int = 0
    """Optimizer steps of all particles."""
    samples: int = 0
    """Training examples seen."""
    flops: float = 0.0
    """Floating-point operations of training and scoring, without products with zero (NaN: unknown); see FlopCounter."""
    seconds: float = 0.0
    sequential_steps: int = 0
    """Steps one after another where the particles of a cycle train at the same time, each on a worker of its own: the
    time of training. A step of two passes (SAM) counts twice."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Cost)))

    def beside(self, other: "Cost") -> "Cost":
        """The cost of both, at the same time."""
        return replace(self + other, sequential_steps=max(self.sequential_steps, other.sequential_steps))


@dataclass(frozen=True)
class Divergence:
    """A training that diverged: its loss or weights were not finite."""

    cycle: int | None
    """None: the training of the ticket."""
    particle: int
    """Index of the particle; TRUNK: the trunk of the cycle's particles."""
    lr: float
    """Peak learning rate of the training that diverged."""
    steps: int
    """Steps taken until the divergence was found: losses are read once an epoch."""
    why: str
    again: float | None
    """Peak learning rate of the restart; None: the particle was left out of the mean."""
    others: int = 0
    """Steps of the other particles that were trained again with it, because they share its changing masks."""

    @property
    def sentence(self) -> str:
        """One line for the log."""
        trained = "the trunk" if self.particle == TRUNK else f"particle {self.particle}"
        where = "The ticket" if self.cycle is None else f"Cycle {self.cycle}, {trained},"
        if self.again is None:
            return f"{where} diverged: {self.why} It is left out of the mean."
        return f"{where} diverged: {self.why} It is trained again with learning rate {self.again:g}."


@dataclass(frozen=True)
class Barrier:
    """Error barriers in [0, 1] between the particles of one cycle (definition: Frankle et al. 2020)."""

    pair: float
    """max over a in [0, 1] of E((1 - a) w0 + a w1) - (E(w0) + E(w1)) / 2, of the first two particles."""
    mean: float
    """E(mean of all particles) - mean of their errors: negative where averaging helps."""

    @property
    def higher(self) -> float:
        """The higher of the two barriers; NaN if either is."""
        return highest([self.pair, self.mean])

    def above(self, threshold: float) -> bool:
        """Whether either barrier is higher than `threshold`, or NaN."""
        return not self.higher <= threshold

    def warning(self, cycle: int, sparsity: float, threshold: float) -> str | None:
        """The warning to show if a barrier is higher than `threshold`, or NaN, else None."""
        if not self.above(threshold):
            return None
        barrier = f"cycle {cycle} (sparsity {sparsity:.4f}): the error barrier between particles is"
        if math.isnan(self.higher):
            return f"{barrier} unknown: the error of a particle, or of a network between them, is not finite."
        return (
            f"{barrier} {100 * self.higher:.1f} points, above {100 * threshold:.1f}. Their mean may be worse than each "
            "of them: the ticket is not stable at this sparsity. Take it later (ticket_epochs), prune less per cycle "
            "(prune_fraction) or lower the learning rate."
        )


Decision = Literal["more", "enough", "dropped", "all"]


@dataclass(frozen=True)
class Wave:
    """Losses on held-out data after a wave of particles, and what was decided. Errors for a task of two functions."""

    trained: int
    """Particles of the cycle that were trained so far."""
    kept: int
    """Those of them that are averaged: the first ones."""
    single: float
    """Mean loss of the single particles."""
    pair: float
    """Mean loss of the means of two particles."""
    mean: float
    """Loss of the mean of all particles, those of this wave included."""
    deviation: float
    """Standard error, over the examples, of the difference that decided: of single and pair, or of two means."""
    predicted: float
    """Loss that the mean would have with another wave."""
    gain: float
    """Predicted fall of the loss for each particle of another wave, as a fraction of the loss."""
    decision: Decision
    """more: another wave is trained; enough: it would gain too little; dropped: this wave raised the loss of the mean
    and is left out; all: there are no more particles."""

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "Wave":
        """The wave of a record."""
        return cls(**{name: _number(value) for name, value in line.items()})

    @property
    def sentence(self) -> str:
        """The decision in words."""
        losses = f"{self.trained} particles: loss {self.single:.4f} alone, {self.mean:.4f} averaged"
        if self.decision == "dropped":
            return f"{losses}; the last ones raise it, {self.kept} kept"
        return f"{losses}; another would save {100 * self.gain:.2f} %: {self.decision}"


@dataclass(frozen=True)
class SplitMetrics:
    """Metrics on each split; `validation` is None where nothing was held out.

    Those of `test` are NaN where the task has no test data: see Task.without_test.
    """

    train: Metrics
    validation: Metrics | None
    test: Metrics


@dataclass(frozen=True)
class ParticleRecord:
    """One particle in the record of its cycle."""

    metrics: SplitMetrics
    steps: int
    seconds: float
    loss: float
    """Mean training loss of its last epoch."""
    index: int = 0
    """Number of the particle in its cycle, from 0. Numbers have gaps where diverged particles were left out."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        own = {"index": self.index, "steps": self.steps, "seconds": self.seconds, "loss": self.loss}
        return {**asdict(self.metrics), **own}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "ParticleRecord":
        """The record that `to_json` described."""
        return cls(_split_metrics(line), line["steps"], line["seconds"], _number(line["loss"]), line["index"])


@dataclass(frozen=True, eq=False)
class Cycle:
    """One cycle, finished. `weights` under `mask` is a usable sparse model."""

    index: int
    mask: Mask
    weights: State
    """State dict of the cycle's model (of an ensemble: of its first member), normalisation statistics included."""
    density_of_all: float
    metrics: SplitMetrics
    particles: tuple[ParticleRecord, ...]
    barrier: Barrier | None
    metrics_before_bn_update: Metrics | None
    """Test metrics with averaged BatchNorm statistics, before they are re-estimated. None where nothing was averaged or
    the model has no BatchNorm."""
    cost: Cost
    """Cost of this cycle alone; in the first cycle it includes the training of the ticket."""
    total: Cost
    """Cost of everything that this model depends on: earlier cycles too, if the method continues from them."""
    warnings: tuple[str, ...] = ()
    heads: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Density of each attention head, by attention module: see masks/heads.py."""
    divergences: tuple[Divergence, ...] = ()
    """Trainings of this cycle that diverged; the first cycle includes those of the ticket."""
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Extra state of the first particle of a custom trainer; not in the record, but in the particle's file."""
    trunk: int = 0
    """Steps of the trunk that the particles share, which is trained once (0: there is none)."""
    waves: tuple[Wave, ...] = ()
    """How the number of particles was chosen (particles="auto"); empty where it was given."""

    @property
    def sparsity(self) -> float:
        """1 - nnz / prunable."""
        return self.mask.sparsity

    def __repr__(self) -> str:
        test = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.test.items())
        return f"Cycle({self.index}, {self.mask!r}, {len(self.particles)} particles, test {test})"

    def _repr_html_(self) -> str:
        """A table of the metrics on each split, for notebooks."""
        splits = {"train": self.metrics.train, "validation": self.metrics.validation or {}, "test": self.metrics.test}
        names = list(self.metrics.test)
        rows = "".join(
            f"<tr><td>{split}</td>{''.join(f'<td>{values.get(name, math.nan):.4g}</td>' for name in names)}</tr>"
            for split, values in splits.items()
        )
        head = "".join(f"<th>{escape(name)}</th>" for name in ("", *names))
        return f"<p>{escape(repr(self))}</p><table><tr>{head}</tr>{rows}</table>"

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
            "nnz": self.mask.nnz,
            "prunable": self.mask.prunable,
            **asdict(self.metrics),
            "trunk": self.trunk,
            "waves": [asdict(wave) for wave in self.waves],
            "particles": [particle.to_json() for particle in self.particles],
            "barrier": asdict(self.barrier) if self.barrier else None,
            "metrics_before_bn_update": self.metrics_before_bn_update,
            **asdict(self.cost),
            "total": asdict(self.total),
            "warnings": list(self.warnings),
            "divergences": [asdict(one) for one in self.divergences],
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
            _split_metrics(line),
            tuple(map(ParticleRecord.from_json, line["particles"])),
            Barrier(*(_number(line["barrier"][name]) for name in ("pair", "mean"))) if line["barrier"] else None,
            _numbers(line["metrics_before_bn_update"]),
            _cost(line),
            _cost(line["total"]),
            tuple(line["warnings"]),
            line["density"]["heads"],
            tuple(Divergence(**one) for one in line["divergences"]),
            trunk=line["trunk"],
            waves=tuple(map(Wave.from_json, line["waves"])),
        )


def _cost(line: Mapping[str, Any]) -> Cost:
    return Cost(line["steps"], line["samples"], _number(line["flops"]), line["seconds"], line["sequential_steps"])


def _split_metrics(fields: Mapping[str, Any]) -> SplitMetrics:
    train, test = (_numbers(fields[split]) or {} for split in ("train", "test"))
    return SplitMetrics(train, _numbers(fields["validation"]), test)


def _numbers(metrics: Mapping[str, float | None] | None) -> Metrics | None:
    return None if metrics is None else {name: _number(value) for name, value in metrics.items()}


def _number(value: Any) -> Any:
    # JSON knows no NaN: what was not finite was written as null.
    return math.nan if value is None else value
