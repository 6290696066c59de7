"""What averaging more particles gains, and what pairs of particles say of it in advance.

Near their mean the loss of a network is quadratic. The mean of n particles that differ by independent noise of
covariance S then has the expected loss L + tr(H S) / 2n, with the Hessian H and the loss L at the mean of infinitely
many: the loss falls with 1 / n. Single particles and pairs determine both numbers, and so the mean of any number:

    L(n) = L(1) - 2 (L(1) - L(2)) (1 - 1/n)
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from swamp.analysis.analysis_tasks import AnalysisSettings, AnalysisTask, Record, tasks_by_cycle
from swamp.analysis.hull import Hull, centroid, rank_correlation
from swamp.analysis.point_evaluator import PointEvaluator
from swamp.analysis.run_data import RunData
from swamp.training import Seed

MOST_SUBSETS = 28
"""Means of each size that are evaluated: all pairs of eight particles; of more, a random choice."""


def averaging_tasks(run: RunData, settings: AnalysisSettings) -> Iterator[AnalysisTask]:
    """How much does each further particle gain, and do pairs of particles predict it?"""
    return tasks_by_cycle("averaging", run, settings, averaging_of_cycle, _correlations)


def averaging_of_cycle(run: RunData, index: int, settings: AnalysisSettings) -> Record:
    """Loss and error of the means of 1, 2, 4 ... particles of a cycle, and what the law predicts from pairs.

    Raises:
        SwampError: Fewer than two particles of the cycle are on disk, or the task is one of two functions.
    """
    run.task.require_outputs("the gain of averaging")
    states = [particle.weights for particle in run.require_particles(index)]
    hull = Hull(states, PointEvaluator(run.model, run.task, examples=settings.examples))
    count = len(states)
    subsets = {
        size: _subsets(count, size, Seed(settings.seed).at("averaging", index, size)) for size in sizes_of(count)
    }
    # One call evaluates as many points at once as possible; the calls below read its results.
    hull([centroid(count, subset) for group in subsets.values() for subset in group])
    found: Record = {
        "cycle": index,
        "sparsity": run.cycle(index).mask.sparsity,
        "particles": count,
        "data": run.held_out_split,
        "sizes": [*subsets],
    }
    for quantity in ("loss", "error"):
        values = {
            size: [getattr(point, quantity) for point in hull([centroid(count, subset) for subset in group])]
            for size, group in subsets.items()
        }
        measured = [sum(group) / len(group) for group in values.values()]
        found[quantity] = {
            "mean": measured,
            "spread": [_deviation(group) for group in values.values()],
            "predicted": predicted(measured[0], measured[1], [*subsets]),
        }
    return found


def sizes_of(count: int) -> list[int]:
    """1, 2, 4 ... and `count` itself."""
    return sorted({count, *(2**power for power in range(count.bit_length()) if 2**power <= count)})


def predicted(single: float, pair: float, sizes: Sequence[int]) -> list[float]:
    """Values of means of so many particles by the law, from those of single particles and of pairs."""
    return [single - 2 * (single - pair) * (1 - 1 / size) for size in sizes]


class Gain(NamedTuple):
    """What the mean of `after` particles gains over the mean of `before`."""

    before: int
    after: int
    predicted: float
    measured: float


def gains(record: Mapping[str, Any], quantity: str) -> list[Gain]:
    """The gain of each step beyond pairs, from one size of a record to the next."""
    values: Mapping[str, Any] = record[quantity]
    steps = zip(record["sizes"], values["predicted"], values["mean"], strict=True)
    # A number that was not finite is None after reading it from disk.
    known = [step for step in steps if None not in step]
    return [
        Gain(smaller, size, law_before - law, before - after)
        for (smaller, law_before, before), (size, law, after) in pairwise(known)
        if smaller >= 2
    ]


def _subsets(count: int, size: int, seed: Seed) -> list[tuple[int, ...]]:
    if math.comb(count, size) <= MOST_SUBSETS:
        return list(combinations(range(count), size))
    draw, found = random.Random(seed.number()), set[tuple[int, ...]]()
    while len(found) < MOST_SUBSETS:
        found.add(tuple(sorted(draw.sample(range(count), size))))
    return sorted(found)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def _correlations(records: Sequence[Mapping[str, Any]]) -> Record:
    """Rank correlations of predicted and measured gains over the cycles."""

    def correlation(quantity: str) -> float | None:
        found = (gain for record in records for gain in gains(record, quantity))
        return rank_correlation((gain.predicted, gain.measured) for gain in found)

    return {"cycles": len(records), **{quantity: correlation(quantity) for quantity in ("loss", "error")}}
