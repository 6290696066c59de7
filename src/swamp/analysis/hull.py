"""The convex hull of a cycle's particles: its size, loss and error inside it, and the best combination (soup)."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from swamp.analysis.analysis_tasks import AnalysisSettings, AnalysisTask, Record, tasks_by_cycle
from swamp.analysis.point_evaluator import PointEvaluator, PointMetrics
from swamp.analysis.run_data import RunData, some_examples
from swamp.analysis.weight_space import (
    LinearCombination,
    angles,
    covariance_spectrum,
    distances,
    inner_products,
    participation_ratio,
    to_list,
)
from swamp.backends import Particle
from swamp.batches import Batch, rows_of
from swamp.files import digest
from swamp.masks import Mask
from swamp.training import Seed
from swamp.training.average import State
from swamp.training.data import BatchList, Data
from swamp.training.mask_updates import masked_state
from swamp.training.metrics import comparable, spearman
from swamp.training.module_extra_state import as_tensors

SAMPLES = 20
"""Random points in the hull."""
GRID_STEPS = 6
"""Grid steps along a side of a triangle, and along an edge."""
Coefficients = tuple[float, ...]
"""Barycentric coordinates: one per network, not negative, sum 1."""
EvaluatePoints = Callable[[Sequence[Coefficients]], Sequence[PointMetrics]]
"""Points of the hull -> loss and error at each."""

_SOUP_ROUNDS, _SOUP_STEP, _SHRINK, _SHRINK_AFTER_GAIN = 7, 0.4, 0.5, 0.8
_BATCH = 512


class Hull:
    """Evaluates convex combinations of networks, each combination once."""

    def __init__(self, states: Sequence[State], evaluator: PointEvaluator) -> None:
        self.states = [{name: value.to(evaluator.device) for name, value in state.items()} for state in states]
        self.evaluator = evaluator
        self._known: dict[Coefficients, PointMetrics] = {}

    def __call__(self, points: Sequence[Coefficients]) -> list[PointMetrics]:
        """Loss and error at `points`, in order."""
        new = [point for point in dict.fromkeys(points) if point not in self._known]
        found = self.evaluator(LinearCombination(self.states, point) for point in new)
        self._known.update(zip(new, found, strict=True))
        return [self._known[point] for point in points]


def extreme_point(index: int, count: int) -> Coefficients:
    """Network `index` alone: an extreme point of the hull."""
    return tuple(float(n == index) for n in range(count))


def centroid(count: int, of: Sequence[int] | None = None) -> Coefficients:
    """Equal coefficients for all networks, or for those in `of`."""
    chosen = range(count) if of is None else of
    return tuple(1 / len(chosen) if n in chosen else 0.0 for n in range(count))


def dirichlet_samples(samples: int, count: int, seed: Seed) -> list[Coefficients]:
    """Random points of the hull, uniformly distributed."""
    drawn = np.random.default_rng(seed.number()).dirichlet([1.0] * count, samples)
    return [tuple(row) for row in drawn.tolist()]


def edge(i: int, j: int, count: int) -> list[Coefficients]:
    """Inner points from network i to network j: at 1/3, 1/2 and 2/3, which are points of `triangle_grid` too."""
    return [
        _grid_point(count, {i: GRID_STEPS - k, j: k}) for k in range(GRID_STEPS // 3, GRID_STEPS - GRID_STEPS // 3 + 1)
    ]


def triangle_grid(count: int) -> list[Coefficients]:
    """A grid over the triangle of the first three networks, sides included."""
    rows = ((a, b) for a in range(GRID_STEPS, -1, -1) for b in range(GRID_STEPS - a, -1, -1))
    return [_grid_point(count, {0: a, 1: b, 2: GRID_STEPS - a - b}) for a, b in rows]


def _grid_point(count: int, steps: dict[int, int]) -> Coefficients:
    return tuple(steps.get(n, 0) / GRID_STEPS for n in range(count))


def hull_tasks(run: RunData, settings: AnalysisSettings) -> Iterator[AnalysisTask]:
    """Do particles span a hull, how large is it, and is its centre better than its extreme points?"""
    return tasks_by_cycle("hull", run, settings, hull_of_cycle, size_and_gain)


def hull_of_cycle(run: RunData, index: int, settings: AnalysisSettings) -> Record:
    """The hull measurements of one cycle, as a record.

    Raises:
        SwampError: fewer than two particles of the cycle are on disk, or the task is one of two functions.
    """
    run.task.require_outputs("the hull")
    particles = run.require_particles(index)
    mask = run.cycle(index).mask
    states = [particle.weights for particle in particles]
    whole = Hull(states, PointEvaluator(run.model, run.task, examples=settings.examples))
    inside = evaluate_hull(whole, Seed(settings.seed).at("hull", index))
    return {
        "cycle": index,
        "sparsity": mask.sparsity,
        "particles": len(states),
        "data": run.held_out_split,
        **size_of(states, mask),
        **seen_from_start(run, index, particles, mask),
        **inside,
        "soups": compare_soups(run, states, settings),
    }


def size_of(states: Sequence[State], mask: Mask) -> Record:
    """Distances between networks and to their mean, over the prunable weights, and the spectrum of their covariance."""
    count = len(states)
    products = inner_products(states, _mean_in_float64(states, mask), mask)
    spectrum = covariance_spectrum(products)
    apart = distances(products)
    return {
        "distances": to_list(apart),
        "mean_distance": float(apart.sum()) / (count * (count - 1)),
        "radius": float(products.diagonal().max().sqrt()),
        "spectrum": spectrum,
        "dimension": participation_ratio(spectrum),
    }


def seen_from_start(run: RunData, index: int, particles: Sequence[Particle], mask: Mask) -> Record:
    """Distances and angles (degrees) of the particles from their common start, pruned by the mask.

    "start" is its name: the ticket, the initial weights, or the model of an earlier cycle. All values are None if the
    start is not in the run directory.
    """
    start = _start(run, index, particles[0].ticket)
    if start is None:
        return {"start": None, "angles": None, "to_ticket": None}
    name, weights = start
    states = [particle.weights for particle in particles]
    products = inner_products([*states, _mean_in_float64(states, mask)], masked_state(weights, mask), mask)
    lengths = to_list(products.diagonal().sqrt())
    return {
        "start": name,
        "angles": to_list(angles(products[:-1, :-1])),
        "to_ticket": {"particles": lengths[:-1], "mean": lengths[-1]},
    }


def evaluate_hull(whole: Hull, seed: Seed) -> Record:
    """Loss and error at the extreme points, the mean, random points, on the edges and over the first triangle."""
    count = len(whole.states)
    pairs = list(combinations(range(count), 2))
    extremes = [extreme_point(n, count) for n in range(count)]
    drawn = dirichlet_samples(SAMPLES, count, seed)
    edges = [edge(i, j, count) for i, j in pairs]
    grid = triangle_grid(count) if count > 2 else []
    # One call evaluates as many points at once as possible; the calls below read its results.
    whole([*extremes, centroid(count), *drawn, *(point for side in edges for point in side), *grid])
    ends, (mean,) = whole(extremes), whole([centroid(count)])
    return {
        "extreme_points": [_as_record(metrics) for metrics in ends],
        "mean": _as_record(mean),
        "samples": [
            {"coefficients": list(at), **_as_record(metrics)} for at, metrics in zip(drawn, whole(drawn), strict=True)
        ],
        "edges": [
            {"between": [i, j], "coefficients": [point[j] for point in side], **_as_columns(whole(side))}
            for (i, j), side in zip(pairs, edges, strict=True)
        ],
        "triangle": {"coefficients": [list(p[:3]) for p in grid], **_as_columns(whole(grid))} if grid else None,
        **gain_of_mean(ends, mean),
    }


def gain_of_mean(particles: Sequence[PointMetrics], mean: PointMetrics) -> Record:
    """Average error, and loss, of the particles minus that of their mean: positive if averaging helps."""
    count = len(particles)
    return {
        "gain": sum(metrics.error for metrics in particles) / count - mean.error,
        "loss_gain": sum(metrics.loss for metrics in particles) / count - mean.loss,
    }


def compare_soups(run: RunData, states: Sequence[State], settings: AnalysisSettings) -> Record:
    """Mean, greedy soup, learned soup and best particle: chosen on one half of the examples, compared on the other.

    "best" is the particle with the lowest error on the first half, the control for all soups.
    """
    count = len(states)
    parts = halves(run.task.held_out, settings.examples)
    choosing, comparing = (
        Hull(states, PointEvaluator(run.model, run.task, part, examples=settings.examples)) for part in parts
    )
    alone = choosing([extreme_point(n, count) for n in range(count)])
    best = min(range(count), key=lambda n: comparable(alone[n].error))
    taken, coefficients = greedy_soup(choosing, count), learned_soup(choosing, count)
    points = [centroid(count), extreme_point(best, count), centroid(count, taken), coefficients]
    mean, single, greedy, learned = map(_as_record, comparing(points))
    return {
        "chosen_on": len(parts[0]),
        "compared_on": len(parts[1]),
        "mean": mean,
        "best": {"particle": best, **single},
        "greedy": {"taken": list(taken), **greedy},
        "learned": {"coefficients": list(coefficients), **learned},
    }


def halves(data: Data, examples: int) -> tuple[BatchList, BatchList]:
    """The even and the odd ones of at most `examples` of `data`, a fixed random subset, in memory, as model inputs."""
    parts: tuple[list[Batch], list[Batch]] = [], []
    for inputs, targets in some_examples(data, examples, _BATCH):
        for first, part in enumerate(parts):
            rows = slice(first, None, 2)
            if first < len(targets):
                part.append((rows_of(inputs, rows), targets[rows]))
    return BatchList(parts[0]), BatchList(parts[1])


def greedy_soup(evaluate: EvaluatePoints, count: int) -> tuple[int, ...]:
    """Networks in a greedy soup, best first: a network is added if the error does not rise (Wortsman et al. 2022)."""
    alone = evaluate([extreme_point(n, count) for n in range(count)])
    order = sorted(range(count), key=lambda n: comparable(alone[n].error))
    taken, lowest = [order[0]], alone[order[0]].error
    for candidate in order[1:]:
        (found,) = evaluate([centroid(count, [*taken, candidate])])
        if found.error <= lowest:
            taken, lowest = [*taken, candidate], found.error
    return tuple(taken)


def learned_soup(evaluate: EvaluatePoints, count: int) -> Coefficients:
    """Coefficients with the lowest loss found by pattern search; not worse than the mean or any network alone.

    The search starts at the best of the mean and the networks. Each round tries a larger and a smaller coefficient for
    each network and takes the best point if its loss is lower. The step is multiplied by 0.8 after a gain and by 0.5
    otherwise. Losses that are not finite are never chosen. Evaluates 1 + 15 * count points.
    """
    start = [centroid(count), *(extreme_point(n, count) for n in range(count))]
    best, lowest = _lowest_loss(evaluate, start)
    step = _SOUP_STEP
    for _ in range(_SOUP_ROUNDS):
        candidates = [_moved(best, n, by) for n in range(count) for by in (step, -2 * step)]
        found, loss = _lowest_loss(evaluate, candidates)
        improved = loss < lowest
        if improved:
            best, lowest = found, loss
        step *= _SHRINK_AFTER_GAIN if improved else _SHRINK
    return best


def _lowest_loss(evaluate: EvaluatePoints, points: Sequence[Coefficients]) -> tuple[Coefficients, float]:
    losses = [metrics.loss if math.isfinite(metrics.loss) else math.inf for metrics in evaluate(points)]
    return min(zip(points, losses, strict=True), key=itemgetter(1))


def _moved(coefficients: Coefficients, network: int, by: float) -> Coefficients:
    """Move by the fraction `by` towards one network; if negative, scale its coefficient by 1 + by and renormalise."""
    if by > 0:
        return tuple((1 - by) * value + by * (n == network) for n, value in enumerate(coefficients))
    scaled = tuple(value * (1 + by * (n == network)) for n, value in enumerate(coefficients))
    return tuple(value / sum(scaled) for value in scaled)


def size_and_gain(records: Sequence[Mapping[str, Any]]) -> Record:
    """Spearman correlations over cycles between the size of the hull and the gain of averaging.

    None for fewer than three cycles. The correlation of sparsity with the gain is included for comparison, because size
    and gain both depend on sparsity: if a size correlates no more than sparsity, it explains nothing.
    """
    if not records:
        reason = "no cycle has two particles on disk: run with --keep-checkpoints particles and --particles 2 or more."
        return {"cycles": 0, "skipped": reason}
    sizes = ("radius", "mean_distance", "dimension", "sparsity")
    return {
        "cycles": len(records),
        **{
            gain: {size: rank_correlation((line[size], line[gain]) for line in records) for size in sizes}
            for gain in ("gain", "loss_gain")
        },
    }


def rank_correlation(pairs: Iterable[tuple[float | None, float | None]]) -> float | None:
    """Spearman correlation of the pairs of finite numbers; None for fewer than three."""
    known = [pair for pair in pairs if all(value is not None and math.isfinite(value) for value in pair)]
    if len(known) < 3:
        return None
    return spearman(*torch.tensor(known, dtype=torch.float64).T, constant=math.nan)


def _start(run: RunData, index: int, digest_of_start: str) -> tuple[str, State] | None:
    """Name and weights of the state with this digest, from which the particles of cycle `index` were trained."""
    if run.ticket is not None and run.ticket.id == digest_of_start:
        return "ticket", run.ticket.weights
    initial = as_tensors(run.model.state_dict())
    if digest(initial) == digest_of_start:
        return "initial", initial
    for earlier in dict.fromkeys((index - 1, 0)):
        if 0 <= earlier < index and digest(weights := run.cycle(earlier).weights) == digest_of_start:
            return f"cycle {earlier}", weights
    return None


def _mean_in_float64(states: Sequence[State], mask: Mask) -> State:
    # The stored mean is rounded: distances from it would differ from the distances from the exact mean.
    types = {name: torch.promote_types(states[0][name].dtype, torch.float64) for name in mask}
    return {name: torch.stack([state[name].to(wide) for state in states]).mean(0) for name, wide in types.items()}


def _as_record(metrics: PointMetrics) -> Record:
    return {"loss": metrics.loss, "error": metrics.error}


def _as_columns(metrics: Sequence[PointMetrics]) -> Record:
    return {"loss": [one.loss for one in metrics], "error": [one.error for one in metrics]}
