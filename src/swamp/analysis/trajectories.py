"""Trajectories of particles during training: principal components, distances, and the onset of stability."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from swamp.analysis.analysis_tasks import AnalysisSettings, AnalysisTask
from swamp.analysis.barriers import evaluate_segment
from swamp.analysis.point_evaluator import PointEvaluator
from swamp.analysis.run_data import RunData
from swamp.analysis.weight_space import ParameterSpace, as_vector, euclidean_norm
from swamp.errors import SwampError
from swamp.runs.trajectory import read_trajectory
from swamp.training.average import State
from swamp.training.mask_updates import masked_state

STABLE = 0.02
"""Error barrier below which two models count as connected: 2 points (Frankle et al. 2020)."""
SEGMENT_POINTS = 7
"""Points on each segment between two trajectories."""
MAX_POINTS = 200
"""A longer trajectory is reduced to this many evenly spaced points."""
_ROUNDING = 1e-12
"""Fraction of the variance below which a component counts as rounding error."""

Trajectory = Mapping[int, State]
"""Step -> weights."""


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """Points in the plane of their first two principal components."""

    trajectories: list[list[tuple[float, float]]]
    """Coordinates of the points of each trajectory."""
    others: list[tuple[float, float]]
    """Coordinates of the other points, which do not influence the components."""
    explained: tuple[float, float]
    """Fraction of the variance along each component."""


def principal_components(
    space: ParameterSpace, trajectories: Sequence[Sequence[State]], others: Sequence[State] = ()
) -> PrincipalComponents:
    """Principal component analysis of all points of all trajectories, about their mean.

    Uses the Gram matrix of inner products in float64, as there are many more weights than points. The coordinate with
    the largest absolute value is positive in each component.

    Raises:
        SwampError: fewer than two points.
    """
    points = [state for trajectory in trajectories for state in trajectory]
    if len(points) < 2:
        raise SwampError(f"principal components need two points or more, got {len(points)}.")
    products = torch.zeros(len(points) + len(others), len(points), dtype=torch.float64)
    for name in space.names:
        rows = torch.stack([as_vector(s[name]).to("cpu") for s in [*points, *others]])
        rows -= rows[: len(points)].mean(0)
        products += rows @ rows[: len(points)].T
    gram = products[: len(points)]
    total = float(gram.trace())
    (first, x), (second, y) = _leading_components(products, gram, total)
    coordinates = list(zip(x, y, strict=True))
    ends = [0]
    for trajectory in trajectories:
        ends.append(ends[-1] + len(trajectory))
    return PrincipalComponents(
        [coordinates[low:high] for low, high in pairwise(ends)],
        coordinates[len(points) :],
        (first / total, second / total) if total else (0.0, 0.0),
    )


def _leading_components(products: Tensor, gram: Tensor, total: float) -> list[tuple[float, list[float]]]:
    """Variance (summed over points) along the first two components, and the coordinates of all points."""
    solved: tuple[Tensor, Tensor] = cast(Any, torch.linalg).eigh(gram)
    found: list[tuple[float, list[float]]] = []
    for number in (-1, -2):
        value, vector = float(solved[0][number]), solved[1][:, number]
        if not value > _ROUNDING * total:
            # The points do not vary along this component: its direction is undefined, and all coordinates are 0.
            found.append((0.0, [0.0] * len(products)))
            continue
        sign = 1.0 if float(vector[vector.abs().argmax()]) > 0 else -1.0
        found.append((value, [float(one) for one in products @ vector * (sign / value**0.5)]))
    return found


def stability_onset(steps: Sequence[int], barriers: Sequence[float]) -> int | None:
    """The first of `steps` from which on all barriers are below STABLE; None if the last one is not."""
    onset = None
    for step, barrier in zip(reversed(steps), reversed(barriers), strict=True):
        if not barrier < STABLE:
            break
        onset = step
    return onset


def trajectory_tasks(run: RunData, settings: AnalysisSettings) -> Iterator[AnalysisTask]:
    """How do particles move away from the ticket and from each other, and when does the barrier between them vanish?"""
    evaluator = PointEvaluator(run.model, run.task, examples=settings.examples)
    for index in range(run.cycles):
        yield AnalysisTask(f"trajectories/cycle-{index:02d}", partial(_of_cycle, run, settings, evaluator, index))


def _of_cycle(run: RunData, settings: AnalysisSettings, evaluator: PointEvaluator, index: int) -> dict[str, Any]:
    cycle = run.cycle(index)
    heading = {"cycle": index, "sparsity": cycle.sparsity}
    files = [run.directory.trajectory(index, number) for number in run.particle_numbers(index)]
    taken = [_thinned(read_trajectory(file, run.directory), MAX_POINTS) for file in files]
    if not all(taken):
        return {
            **heading,
            "skipped": f"{run.directory.path} has no trajectories of these particles. Run with --trajectory-every "
            "STEPS; methods that change masks during training store no trajectories.",
        }
    space = ParameterSpace(run.model)
    models = {f"particle-{p.index}": p.weights for p in run.particles(index)}
    models["mean"] = cycle.weights
    if run.ticket is not None:
        models["ticket"] = masked_state(run.ticket.weights, cycle.mask)
    found = principal_components(space, [list(one.values()) for one in taken], list(models.values()))
    start = space.vector(models["ticket"]) if "ticket" in models else None
    steps, heights = _barriers(taken, cycle.weights, settings, evaluator) if len(taken) > 1 else ([], [])
    return {
        **heading,
        "particles": [
            _particle(space, one, taken[0], start, coordinates)
            for one, coordinates in zip(taken, found.trajectories, strict=True)
        ],
        "explained": list(found.explained),
        "points": dict(zip(models, map(list, found.others), strict=True)),
        "barriers": {"steps": steps, "error": heights},
        "onset": stability_onset(steps, heights),
    }


def _particle(
    space: ParameterSpace,
    trajectory: Trajectory,
    first: Trajectory,
    start: Tensor | None,
    coordinates: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """Coordinates of one particle at each step, and its distances from the ticket and from the first particle."""
    from_ticket: list[float] = []
    between: list[float | None] = []
    # One point at a time: all of them in float64 may not fit in memory.
    for step, state in trajectory.items():
        here = space.vector(state)
        if start is not None:
            from_ticket.append(euclidean_norm(here - start))
        between.append(euclidean_norm(here - space.vector(first[step])) if step in first else None)
    return {
        "steps": list(trajectory),
        "x": [x for x, _ in coordinates],
        "y": [y for _, y in coordinates],
        "from_ticket": None if start is None else from_ticket,
        "between": between,
    }


def _barriers(
    taken: Sequence[Trajectory], complete: State, settings: AnalysisSettings, evaluator: PointEvaluator
) -> tuple[list[int], list[float]]:
    """Error barriers between the first two particles, at the steps that are in both trajectories."""
    first, second = taken[:2]
    shared = list(_thinned({step: state for step, state in first.items() if step in second}, settings.points))
    # Tensors missing from a trajectory (buffers) are re-estimated at every point, or equal in all models.
    segments = (
        evaluate_segment(evaluator, {**complete, **first[step]}, {**complete, **second[step]}, SEGMENT_POINTS)
        for step in shared
    )
    return shared, [segment.barriers.error for segment in segments]


def _thinned(trajectory: Trajectory, most: int) -> Trajectory:
    """At most `most` points, evenly spaced, the first and the last included."""
    steps = list(trajectory)
    if len(steps) > most:
        steps = [steps[round(k * (len(steps) - 1) / (most - 1))] for k in range(most)] if most > 1 else steps[-1:]
    return {step: trajectory[step] for step in steps}
