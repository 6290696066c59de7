"""The cost of models and runs, the unit it is shown in, and the ranking of methods by cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any, Literal

from swamp.report.run_records import RunRecord, particles_of
from swamp.report.statistics import Paired, ReportMetric, paired

DENSE = 0.995
"""A model with at least this density counts as dense."""
SLACK = 1.05
"""Costs within this factor count as equal: the FLOPs of one method differ a little between seeds."""


@dataclass(frozen=True)
class ModelCost:
    """The total cost of one model, from the first training step to the model.

    `flops` are floating-point operations without multiplications by zero (Evci et al. 2020); None where unknown.
    """

    steps: float
    samples: float
    flops: float | None
    seconds: float
    sequential_steps: float
    """Steps one after another where the particles of a cycle train at the same time."""


@dataclass(frozen=True)
class RunCost(ModelCost):
    """The cost of a method's whole run, mean over seeds; `cycles` is the fewest and the most finished cycles.

    The last model of an iterative method needs all cycles, so `last` equals the run's cost. A method that trains from
    the start for each sparsity pays for one training per sparsity, and `last` is the cost of one.
    """

    seeds: int
    particles: int
    cycles: tuple[int, int]
    last: ModelCost


@dataclass(frozen=True)
class CostUnit:
    """The unit in which costs are shown: `measure` (a field of ModelCost) as a multiple of `dense`, one dense training.

    If `dense` is None, costs are absolute.
    """

    measure: Literal["flops", "steps", "sequential_steps"]
    dense: float | None

    def of(self, cost: ModelCost) -> float | None:
        """A cost in this unit; None where its FLOPs are unknown."""
        spent: float | None = getattr(cost, self.measure)
        scale = self.dense or (1e12 if self.measure == "flops" else 1)
        return None if spent is None else spent / scale

    @property
    def heading(self) -> str:
        """The unit as a column heading."""
        if self.measure == "flops":
            return "TFLOP" if self.dense is None else "× dense"
        if self.measure == "sequential_steps":
            return "steps in sequence" if self.dense is None else "× dense time"
        return "steps" if self.dense is None else "× dense steps"

    def show(self, value: float | None) -> str:
        """A value in this unit: with two decimals relative to a dense training, else with four significant digits."""
        if value is None:
            return "–"
        if self.dense is None:
            return f"{value:,.4g}" if self.measure == "flops" else f"{value:,.0f}"
        return f"{value:.2f}" if value < 100 else f"{value:,.0f}"

    @property
    def meaning(self) -> str:
        """The definition of the unit, in sentences."""
        reference = "the cheapest one-particle cycle at density 1, its ticket included"
        unrelated = "No run trained one dense particle, so costs are absolute."
        if self.measure == "flops":
            counted = "floating-point operations, without multiplications by zero"
            if self.dense is None:
                return f"TFLOP: 10^12 {counted}. {unrelated}"
            return (
                f"× dense: {counted}, divided by those of one dense training "
                f"({self.dense / 1e12:,.4g} TFLOP, {reference})."
            )
        if self.measure == "sequential_steps":
            counted = (
                "optimizer steps one after another, with all particles of a cycle (and the members of an ensemble) at "
                "the same time, each on a worker of its own"
            )
            if self.dense is None:
                return f"Steps in sequence: {counted}. {unrelated}"
            return f"× dense time: {counted}, divided by those of one dense training ({reference})."
        missing = "Not every run recorded its FLOPs, so cost is counted in steps."
        if self.dense is None:
            return f"{missing} {unrelated}"
        return f"{missing} × dense steps: divided by the {self.dense:,.0f} steps of one dense training ({reference})."


@dataclass(frozen=True)
class CostRank:
    """A method's place in the cost ranking of one sparsity; `cost` is in the comparison's unit.

    Two methods are compared by the mean difference over the seeds that both have. Rivals are the other methods at up to
    1.05 times the cost. `front`: the method was compared with all rivals, and none is better. `against`: the best of
    them, and `difference` to it; None without a rival. `unpaired`: rivals without a common seed.
    """

    label: str
    cost: float
    front: bool
    against: str | None
    difference: Paired | None
    unpaired: tuple[str, ...] = ()


def cost_unit(runs: Iterable[RunRecord], *, parallel: bool = False) -> CostUnit:
    """FLOPs if those of every cycle are known, else steps; relative to the cheapest dense one-particle cycle.

    The record of that cycle includes the training of a ticket, where the method has one.

    parallel: the time of training instead, where the particles of a cycle train at the same time.
    """
    cycles = [cycle for run in runs for cycle in run.cycles]
    counted = all(cycle["total"]["flops"] is not None for cycle in cycles)
    measure = "sequential_steps" if parallel else "flops" if counted else "steps"
    # A training that diverged and was repeated costs more than one dense training.
    single = [
        c for c in cycles if c["density"]["prunable"] >= DENSE and len(c["particles"]) <= 1 and not c.get("divergences")
    ]
    return CostUnit(measure, min((float(c[measure]) for c in single if c[measure]), default=None))


def model_cost(total: Mapping[str, Any]) -> ModelCost:
    """The `total` of a cycle's record."""
    return ModelCost(**{one.name: total[one.name] for one in fields(ModelCost)})


def mean_cost(costs: Sequence[ModelCost]) -> ModelCost:
    """The mean of each field; `flops` is None where any is."""
    values: dict[str, list[Any]] = {one.name: [getattr(cost, one.name) for cost in costs] for one in fields(ModelCost)}
    means: dict[str, Any] = {name: None if None in found else fmean(found) for name, found in values.items()}
    return ModelCost(**means)


def run_cost(runs: Sequence[RunRecord]) -> RunCost:
    """The cost of the runs of one method, mean over them."""

    def total(run: RunRecord, key: str) -> Any:
        values: list[Any] = [cycle[key] for cycle in run.cycles]
        return None if None in values else sum(values)

    wholes = [{one.name: total(run, one.name) for one in fields(ModelCost)} for run in runs]
    counts = [len(run.cycles) for run in runs]
    return RunCost(
        seeds=len(runs),
        particles=max(map(particles_of, runs)),
        cycles=(min(counts), max(counts)),
        **asdict(mean_cost([model_cost(whole) for whole in wholes])),
        last=mean_cost([model_cost(run.cycles[-1]["total"]) for run in runs]),
    )


def rank_by_cost(
    costs: Mapping[str, float],
    means: Mapping[str, float],
    values: Mapping[str, Mapping[int, float]],
    metric: ReportMetric,
) -> tuple[CostRank, ...]:
    """Rank methods by cost, the cheapest first, equal costs in the order given.

    A method whose mean is not finite is never on the front, and no other is compared with it. Means of unequal seeds
    are never compared: see CostRank.

    Args:
        costs: label -> cost in the comparison's unit.
        means: label -> mean over seeds.
        values: label -> seed -> value.
        metric: decides which mean is better.
    """
    sign = -1 if metric.lower else 1
    finite = [label for label, mean in means.items() if math.isfinite(mean)]
    ranks: list[CostRank] = []
    for label in sorted(costs, key=costs.__getitem__):
        rivals = [other for other in finite if other != label and costs[other] <= SLACK * costs[label]]
        differences = {other: paired(values[label], values[other]) for other in rivals}
        unpaired = tuple(other for other in rivals if not differences[other].n)
        compared = [other for other in rivals if other not in unpaired]
        against = min(compared, key=lambda other: sign * differences[other].mean, default=None)
        difference = None if against is None else differences[against]
        better = difference is not None and sign * difference.mean < 0
        front = label in finite and not better and not unpaired
        ranks.append(CostRank(label, costs[label], front, against, difference, unpaired))
    return tuple(ranks)
