"""Loss and error barriers on the straight segment between two models (linear mode connectivity)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice
from typing import Any

from torch import nn

from swamp.analysis.analysis_tasks import AnalysisSettings, AnalysisTask
from swamp.analysis.point_evaluator import PointEvaluator, PointMetrics
from swamp.analysis.run_data import RunData
from swamp.analysis.weight_space import LinearCombination
from swamp.backends import Particle
from swamp.errors import SwampError, shortened
from swamp.training import Task
from swamp.training.average import State
from swamp.training.data import Data
from swamp.training.metrics import highest
from swamp.training.module_extra_state import as_tensors, is_extra_state

MAX_PARTICLES_FOR_ALL_PAIRS = 4
"""With more particles, only the barrier between the first two is measured."""


@dataclass(frozen=True)
class Barriers:
    """Heights of a segment above its ends: 0 if it is nowhere higher, NaN if any value on it is NaN."""

    error: float
    """max over a of E(a) - (E(0) + E(1)) / 2, E in [0, 1] (Frankle et al. 2020)."""
    loss: float
    """The same for the loss."""
    chord_error: float
    """max over a of E(a) - ((1 - a) E(0) + a E(1)) (Entezari et al. 2022)."""
    chord_loss: float
    """The same for the loss."""


@dataclass(frozen=True)
class Interpolation:
    """Loss and error at (1 - a) A + a B, for evenly spaced a from 0 to 1, both included."""

    coefficients: tuple[float, ...]
    """The values of a."""
    metrics: tuple[PointMetrics, ...]
    """Loss and error at each a."""

    @property
    def barriers(self) -> Barriers:
        """The barriers in both definitions. They are never negative, as the ends are points of the segment."""
        losses, errors = [m.loss for m in self.metrics], [m.error for m in self.metrics]
        return Barriers(
            _max_height(errors, [(errors[0] + errors[-1]) / 2] * len(errors)),
            _max_height(losses, [(losses[0] + losses[-1]) / 2] * len(losses)),
            _max_height(errors, _chord(errors, self.coefficients)),
            _max_height(losses, _chord(losses, self.coefficients)),
        )

    def to_json(self) -> dict[str, Any]:
        """Coefficients, losses, errors and barriers as plain lists and numbers."""
        return {
            "coefficients": list(self.coefficients),
            "loss": [metrics.loss for metrics in self.metrics],
            "error": [metrics.error for metrics in self.metrics],
            "barrier": dict(self.barriers.__dict__),
        }


def interpolate_models(
    model: nn.Module,
    task: Task,
    a: State | Particle,
    b: State | Particle,
    *,
    points: int = 30,
    data: Data | None = None,
    examples: int = 10_000,
) -> Interpolation:
    """Evaluate `model` on the straight segment from weights `a` to weights `b`.

    Batch normalisation statistics are re-estimated at every point, the ends included.

    Args:
        model: the network. Its own weights do not matter and are not changed.
        task: gives the loss, the error, and the training data for normalisation statistics.
        a: weights by name, or a particle.
        b: weights by name, or a particle that was trained from the same ticket as `a`.
        points: number of evenly spaced points, both ends included.
        data: where loss and error are measured (default: the held-out data of the task, never the test data).
        examples: maximum number of examples, a fixed random subset of `data`.

    Raises:
        SwampError: weights do not fit the model, particles have different tickets, or points < 2.

    Examples:
        >>> import torch
        >>> from swamp.training import Task, TensorData
        >>> data = TensorData(torch.eye(2), torch.tensor([0, 1]))
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> a, b = ({"weight": scale * torch.eye(2)} for scale in (1.0, 3.0))
        >>> interpolate_models(model, Task(data, data), a, b, points=5).barriers.error
        0.0
    """
    if isinstance(a, Particle) and isinstance(b, Particle) and a.ticket != b.ticket:
        raise SwampError(
            f"these particles come from different tickets ({a.ticket}, {b.ticket}): a barrier between them does not "
            "measure stability. Give two particles of one run; to compare unrelated networks, give their .weights."
        )
    first, second = (one.weights if isinstance(one, Particle) else one for one in (a, b))
    return evaluate_segment(PointEvaluator(model, task, data, examples=examples), first, second, points)


def evaluate_segment(evaluator: PointEvaluator, a: State, b: State, points: int) -> Interpolation:
    """`interpolate_models` with an evaluator that is reused for several segments."""
    for which, state in (("first", a), ("second", b)):
        require_fit(evaluator.model, state, f"the {which} of the two models")
    (found,) = _evaluate_segments(evaluator, (a, b), {(0, 1): points})
    return found


def _evaluate_segments(
    evaluator: PointEvaluator, states: Sequence[State], pairs: Mapping[tuple[int, int], int]
) -> list[Interpolation]:
    """Evaluate segments between pairs of `states`, (i, j) -> number of points; all in one call, which is fastest."""
    for points in pairs.values():
        if points < 2:
            raise SwampError(f"a segment includes its two ends: points must be 2 or more, got {points}.")
    spaced = [tuple(k / (points - 1) for k in range(points)) for points in pairs.values()]
    found = iter(
        evaluator(
            LinearCombination(states, [{i: 1 - a, j: a}.get(n, 0.0) for n in range(len(states))])
            for (i, j), coefficients in zip(pairs, spaced, strict=True)
            for a in coefficients
        )
    )
    return [Interpolation(coefficients, tuple(islice(found, len(coefficients)))) for coefficients in spaced]


def require_fit(model: nn.Module, state: State, what: str) -> None:
    """Raise SwampError naming the first tensors of `state` that are missing, unknown or of another shape."""
    expected = as_tensors(model.state_dict())
    wrong = [f"{name!r} is missing" for name in expected if name not in state]
    wrong += [f"{name!r} is unknown" for name in state if name not in expected]
    wrong += [
        f"{name!r} has shape {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape and not is_extra_state(name)
    ]
    if wrong:
        raise SwampError(
            f"{what} does not fit this {type(model).__name__}: {shortened(wrong)}. Give weights of this model."
        )


def barrier_tasks(run: RunData, settings: AnalysisSettings) -> Iterator[AnalysisTask]:
    """Is there a barrier between the particles of a cycle, or between the means of consecutive cycles?"""
    evaluator = PointEvaluator(run.model, run.task, examples=settings.examples)
    with_pairs = run.cycles_with_particles()
    for index in range(run.cycles):
        key = f"barriers/cycle-{index:02d}"
        if index + 1 < run.cycles:
            yield AnalysisTask(f"{key}/next", partial(_between_means, run, settings, evaluator, index))
        if index in with_pairs:
            yield AnalysisTask(f"{key}/particles", partial(_between_particles, run, settings, evaluator, index))


def _between_means(run: RunData, settings: AnalysisSettings, evaluator: PointEvaluator, index: int) -> dict[str, Any]:
    earlier, later = run.cycle(index), run.cycle(index + 1)
    found = evaluate_segment(evaluator, earlier.weights, later.weights, settings.points)
    return {
        "cycle": index,
        "sparsity": earlier.sparsity,
        "between": [f"cycle-{index:02d}", f"cycle-{index + 1:02d}"],
        # If the later mask is a subset of the earlier one, the segment lies on the earlier mask.
        "nested": later.mask.issubset(earlier.mask),
        **found.to_json(),
        "pairs": None,
    }


def _between_particles(
    run: RunData, settings: AnalysisSettings, evaluator: PointEvaluator, index: int
) -> dict[str, Any]:
    particles = run.require_particles(index)
    states = tuple(particle.weights for particle in particles)
    all_pairs = len(states) <= MAX_PARTICLES_FOR_ALL_PAIRS
    pairs = [*combinations(range(len(states)), 2)] if all_pairs else [(0, 1)]
    # The first pair is plotted, so it has all points; a quarter of them is enough for the height of the others.
    fewer = max(2, settings.points // 4)
    found = _evaluate_segments(
        evaluator, states, {pair: settings.points if pair == (0, 1) else fewer for pair in pairs}
    )
    heights = [[0.0] * len(states) for _ in states]
    for (i, j), segment in zip(pairs, found, strict=True):
        heights[i][j] = heights[j][i] = segment.barriers.error
    return {
        "cycle": index,
        "sparsity": run.cycle(index).sparsity,
        # Numbers have gaps where diverged particles were left out.
        "between": [f"particle-{particle.index}" for particle in particles[:2]],
        **found[0].to_json(),
        "pairs": heights if all_pairs else None,
    }


def _chord(values: Sequence[float], coefficients: Sequence[float]) -> list[float]:
    return [(1 - a) * values[0] + a * values[-1] for a in coefficients]


def _max_height(values: Sequence[float], baseline: Sequence[float]) -> float:
    """The largest height above the baseline; NaN if any is NaN."""
    return highest([value - below for value, below in zip(values, baseline, strict=True)])
