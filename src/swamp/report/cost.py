"""What models and runs cost: the sums that records carry, and the unit in which methods are lined up by cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from swamp.report.label import particles_of
from swamp.report.read import RunRecord

DENSE = 0.995
"""From this density on a model counts as dense."""


@dataclass(frozen=True)
class Total:
    """What getting one model took in all; `operations` counts what zeros spare (Evci 2020), None where not recorded."""

    steps: float
    samples: float
    operations: float | None
    seconds: float


@dataclass(frozen=True)
class Cost:
    """What a method's whole run took: means over its seeds. `cycles` is the fewest and the most finished cycles.

    A method that stands alone at each sparsity trains once for every one of them, so its whole run costs more than its
    `last` model did. An iterative method's last model takes all cycles.
    """

    seeds: int
    particles: int
    cycles: tuple[int, int]
    steps: float
    samples: float
    operations: float | None
    seconds: float
    last: Total


@dataclass(frozen=True)
class Unit:
    """Costs are `measure` over `dense`, what one dense training takes; without a dense training they are absolute."""

    measure: Literal["operations", "steps"]
    dense: float | None

    def of(self, cost: Total | Cost) -> float | None:
        """A cost in this unit; None where its operations are not known."""
        spent = cost.operations if self.measure == "operations" else cost.steps
        return spent if spent is None or self.dense is None else spent / self.dense

    @property
    def heading(self) -> str:
        """The unit as a column's heading says it."""
        if self.measure == "operations":
            return "TFLOP" if self.dense is None else "× dense"
        return "steps" if self.dense is None else "× dense steps"

    def show(self, value: float | None) -> str:
        """A value in this unit: three figures or two decimals."""
        if value is None:
            return "–"
        if self.dense is None:
            return f"{value / 1e12:,.4g}" if self.measure == "operations" else f"{value:,.0f}"
        return f"{value:.2f}" if value < 100 else f"{value:,.0f}"

    @property
    def meaning(self) -> str:
        """What the unit is and where it comes from, in sentences."""
        reference = "the least that a cycle with one particle took at density 1"
        if self.measure == "operations":
            what = "floating point operations, those on zeros not counted"
            if self.dense is None:
                return f"TFLOP: 10^12 {what}. No run trained one dense particle to relate them to."
            return f"× dense: {what}, over those of one dense training ({self.dense / 1e12:,.4g} TFLOP, {reference})."
        missing = "Not every run recorded its operations, so cost is counted in steps, whatever a step costs."
        if self.dense is None:
            return f"{missing} No run trained one dense particle to relate them to."
        return f"{missing} × dense steps: over the {self.dense:,.0f} steps of one dense training ({reference})."


def unit_of(runs: Iterable[RunRecord]) -> Unit:
    """Operations where every cycle recorded them, else steps; dense is the least of any dense one-particle cycle."""
    cycles = [cycle for run in runs for cycle in run.cycles]
    known = all(cycle["total"]["operations"] is not None for cycle in cycles)
    measure = "operations" if known else "steps"
    # One that broke and was trained again took more than a dense training does.
    alone = [
        c for c in cycles if c["density"]["prunable"] >= DENSE and len(c["particles"]) <= 1 and not c.get("broken")
    ]
    return Unit(measure, min((float(c[measure]) for c in alone if c[measure]), default=None))


def total_of(record: Mapping[str, Any]) -> Total:
    """The `total` of a cycle's record."""
    return Total(record["steps"], record["samples"], record["operations"], float(record["seconds"]))


def mean_total(totals: Sequence[Total]) -> Total:
    """Each field's mean; operations are None where any is."""
    return Total(
        fmean(total.steps for total in totals),
        fmean(total.samples for total in totals),
        _mean_known([total.operations for total in totals]),
        fmean(total.seconds for total in totals),
    )


def cost_of(runs: Sequence[RunRecord]) -> Cost:
    """What the runs of one method took, as means over them."""

    def spent(key: str) -> list[float | None]:
        each = [[cycle[key] for cycle in run.cycles] for run in runs]
        return [None if None in values else sum(values) for values in each]

    counts = [len(run.cycles) for run in runs]
    return Cost(
        seeds=len(runs),
        particles=max(map(particles_of, runs)),
        cycles=(min(counts), max(counts)),
        steps=_mean_known(spent("steps")) or 0.0,
        samples=_mean_known(spent("samples")) or 0.0,
        operations=_mean_known(spent("operations")),
        seconds=_mean_known(spent("seconds")) or 0.0,
        last=mean_total([total_of(run.cycles[-1]["total"]) for run in runs]),
    )


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
