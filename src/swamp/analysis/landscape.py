"""Loss and error on planes in weight space: through three particles, and along two random directions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from swamp.analysis.analysis_tasks import AnalysisSettings, AnalysisTask, first_middle_last
from swamp.analysis.point_evaluator import PointEvaluator
from swamp.analysis.run_data import RunData
from swamp.analysis.weight_space import LinearCombination, ParameterSpace, as_vector, euclidean_norm
from swamp.errors import SwampError
from swamp.training import Seed
from swamp.training.average import State
from swamp.training.mask_updates import masked_state

GRID_SIZE = 13
"""Grid points along each axis."""
MARGIN = 0.4
"""Margin of a grid around the particles, as a fraction of their larger extent."""
_COLLINEAR = 1e-6
"""Three points count as collinear if the second direction, relative to the first, is shorter than this."""


@dataclass(frozen=True, eq=False)
class Plane:
    """The points origin + x u + y v of weight space."""

    space: ParameterSpace
    origin: State
    """Weights at (0, 0). Every point has the data types and buffers of the origin."""
    u: Tensor
    """First direction (n,), float64."""
    v: Tensor
    """Second direction (n,), float64."""

    @classmethod
    def through(cls, model: nn.Module, states: Sequence[State]) -> "Plane":
        """The plane through three points. Coordinates are orthonormal: distances are Euclidean distances of weights.

        Args:
            model: the network.
            states: three states; the first is the origin, and u points to the second.

        Raises:
            SwampError: the number of points is not three, or they lie on one line.
        """
        if len(states) != 3:
            raise SwampError(f"a plane needs exactly three points, got {len(states)}.")
        space = ParameterSpace(model)
        origin, *others = (space.vector(state) for state in states)
        first, second = (other - origin for other in others)
        length = euclidean_norm(first)
        u = first / length if length else first
        # Twice: rounding may leave a component along u after one subtraction.
        for _ in range(2):
            second = second - (second @ u) * u
        rest = euclidean_norm(second)
        if not rest > _COLLINEAR * length > 0:
            raise SwampError("the three models lie on one line in weight space and define no plane. Give other models.")
        return cls(space, states[0], u, second / rest)

    def at(self, x: float, y: float) -> LinearCombination:
        """The point with coordinates (x, y)."""
        return LinearCombination(self._states, (1.0, x, y))

    @cached_property
    def _states(self) -> tuple[State, ...]:
        return self.origin, self.space.state(self.u), self.space.state(self.v)

    @cached_property
    def _origin(self) -> Tensor:
        return self.space.vector(self.origin)

    @cached_property
    def _basis(self) -> Tensor:
        return torch.stack([self.u, self.v])

    def project(self, state: State) -> tuple[float, float, float]:
        """x and y of the nearest point of the plane, and the distance to it; u and v must be orthonormal."""
        offset = self.space.vector(state) - self._origin
        found = self._basis @ offset
        return float(found[0]), float(found[1]), euclidean_norm(offset - found @ self._basis)


def random_plane(model: nn.Module, state: State, mask: Mapping[str, Tensor], seed: Seed) -> Plane:
    """Two filter-normalised random directions around `state` (Li et al. 2018), on the support of the mask.

    Each filter (the weights into one output) of a direction has the norm of the filter in `state`. Biases and
    normalisation layers are fixed. The directions are not orthogonalised: random directions in high dimensions nearly
    are orthogonal.
    """
    space = ParameterSpace(model)
    generator = seed.generator()

    def direction() -> Tensor:
        parts = [_filter_normalised(state[name], mask.get(name), generator) for name in space.names]
        return torch.cat([as_vector(part) for part in parts])

    return Plane(space, state, direction(), direction())


def evaluate_grid(evaluator: PointEvaluator, plane: Plane, u: Sequence[float], v: Sequence[float]) -> dict[str, Any]:
    """Loss and error on a grid of the plane: one row for each of `v`, with one column for each of `u`."""
    found = iter(evaluator(plane.at(x, y) for y in v for x in u))
    rows = [[next(found) for _ in u] for _ in v]
    return {
        "u": list(u),
        "v": list(v),
        "loss": [[metrics.loss for metrics in row] for row in rows],
        "error": [[metrics.error for metrics in row] for row in rows],
    }


def grid_around(points: Sequence[tuple[float, float]], size: int = GRID_SIZE) -> tuple[list[float], list[float]]:
    """`size` evenly spaced coordinates along each axis, with a margin around the points."""
    extents = [(min(axis), max(axis)) for axis in zip(*points, strict=True)]
    margin = MARGIN * max(high - low for low, high in extents)
    u, v = ([*_evenly_spaced(low - margin, high + margin, size)] for low, high in extents)
    return u, v


def landscape_tasks(run: RunData, settings: AnalysisSettings) -> Iterator[AnalysisTask]:
    """How do loss and error look around the particles: is their mean in a flat valley that contains them all?"""
    evaluator = PointEvaluator(run.model, run.task, examples=settings.examples)
    for index in first_middle_last(run.cycles):
        key = f"landscape/cycle-{index:02d}"
        yield AnalysisTask(key, partial(_through_particles, run, evaluator, index))
        yield AnalysisTask(f"{key}/random", partial(_around_mean, run, settings, evaluator, index))


def _through_particles(run: RunData, evaluator: PointEvaluator, index: int) -> dict[str, Any]:
    cycle = run.cycle(index)
    heading = {"cycle": index, "sparsity": cycle.sparsity}
    try:
        particles = run.require_particles(index, 3)
        plane = Plane.through(run.model, [particle.weights for particle in particles[:3]])
    except SwampError as error:
        # Stored as a reason: other cycles of the run may have three particles.
        return {**heading, "skipped": str(error)}
    models: dict[str, State] = {f"particle-{p.index}": p.weights for p in particles}
    models["mean"] = cycle.weights
    if run.ticket is not None:
        models["ticket"] = masked_state(run.ticket.weights, cycle.mask)
    projected = {name: plane.project(state) for name, state in models.items()}
    u, v = grid_around([(x, y) for name, (x, y, _) in projected.items() if name.startswith("particle")])
    return {
        **heading,
        **evaluate_grid(evaluator, plane, u, v),
        "points": {name: [x, y] for name, (x, y, _) in projected.items()},
        "off_plane": {name: distance for name, (_, _, distance) in projected.items()},
    }


def _around_mean(run: RunData, settings: AnalysisSettings, evaluator: PointEvaluator, index: int) -> dict[str, Any]:
    cycle = run.cycle(index)
    plane = random_plane(run.model, cycle.weights, cycle.mask, Seed(settings.seed).at("landscape", index))
    coordinates = [*_evenly_spaced(-1.0, 1.0, GRID_SIZE)]
    return {
        "cycle": index,
        "sparsity": cycle.sparsity,
        **evaluate_grid(evaluator, plane, coordinates, coordinates),
        "points": {"mean": [0.0, 0.0]},
        "off_plane": {"mean": 0.0},
    }


def _evenly_spaced(low: float, high: float, count: int) -> Iterator[float]:
    return (low + (high - low) * k / (count - 1) for k in range(count))


def _filter_normalised(weight: Tensor, active: Tensor | None, generator: torch.Generator) -> Tensor:
    """A random tensor with the row norms of `weight`; zeros for a vector."""
    weight = weight.detach().to("cpu", torch.promote_types(weight.dtype, torch.float64))
    drawn = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    if active is not None:
        drawn = drawn * active.cpu()
    target, norms = (part.flatten(1).abs().square().sum(1).sqrt() for part in (weight, drawn))
    scale = torch.where(norms > 0, target / norms, 0.0)
    return drawn * scale.reshape(-1, *[1] * (weight.dim() - 1))
