"""Barriers: what the network is worth along the segment between two models."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice
from typing import Any

from torch import Tensor, nn

from swamp.analysis.analysis import Settings, Unit
from swamp.analysis.blend import Blend
from swamp.analysis.points import Points, Value
from swamp.analysis.subject import Subject
from swamp.backends import Particle
from swamp.errors import SwampError, shortened
from swamp.training import Data, State, Task

MOST_PAIRS = 4
"""Particles of which all pairs are looked at; of more, only the first two."""


@dataclass(frozen=True)
class Barriers:
    """How high the way between two models is above its ends; 0 where it is nowhere higher, NaN where a value is."""

    error: float
    """max over a of E(a) - (E(0) + E(1)) / 2, E in [0, 1] (Frankle et al. 2020)."""
    loss: float
    """The same of the loss."""
    chord_error: float
    """max over a of E(a) - ((1 - a) E(0) + a E(1)) (Entezari et al. 2022)."""
    chord_loss: float
    """The same of the loss."""


@dataclass(frozen=True)
class Connection:
    """The segment (1 - a) A + a B at evenly spaced shares a, both ends among them."""

    shares: tuple[float, ...]
    values: tuple[Value, ...]

    @property
    def barriers(self) -> Barriers:
        """In both definitions. Entezari's is never below 0, Frankle's neither: both ends are points of the way."""
        losses, errors = [v.loss for v in self.values], [v.error for v in self.values]
        return Barriers(
            _highest(errors, [(errors[0] + errors[-1]) / 2] * len(errors)),
            _highest(losses, [(losses[0] + losses[-1]) / 2] * len(losses)),
            _highest(errors, _chord(errors, self.shares)),
            _highest(losses, _chord(losses, self.shares)),
        )

    def to_json(self) -> dict[str, Any]:
        """Shares, values and barriers as plain lists and numbers."""
        return {
            "shares": list(self.shares),
            "loss": [value.loss for value in self.values],
            "error": [value.error for value in self.values],
            "barrier": dict(self.barriers.__dict__),
        }


def between(
    model: nn.Module,
    task: Task,
    a: State | Particle,
    b: State | Particle,
    *,
    points: int = 30,
    data: Data | None = None,
    examples: int = 10_000,
) -> Connection:
    """What `model` is worth from weights `a` to weights `b`, at `points` shares from 0 to 1.

    data, examples: where loss and error are taken (default: the task's held-out data, never the test data), and on how
    many. Statistics of batch normalisation are made anew at every point, the ends too. Particles must come from one
    ticket; plain weights are taken as they are. Raises SwampError for weights that do not fit the model.
    """
    if isinstance(a, Particle) and isinstance(b, Particle) and a.ticket != b.ticket:
        raise SwampError(
            f"these particles come from different tickets ({a.ticket}, {b.ticket}): a barrier between them says "
            "nothing of either's stability. Take two of one run; to compare unrelated networks, pass .weights."
        )
    first, second = (one.weights if isinstance(one, Particle) else one for one in (a, b))
    return segment(Points(model, task, data, examples=examples), first, second, points)


def segment(values: Points, a: State, b: State, points: int) -> Connection:
    """`between`, for who looks at several segments: `values` is made once."""
    for which, state in (("first", a), ("second", b)):
        require_fit(values.model, state, f"the {which} of the two models")
    (found,) = _ways(values, (a, b), {(0, 1): points})
    return found


def _ways(values: Points, states: Sequence[State], pairs: Mapping[tuple[int, int], int]) -> list[Connection]:
    """Segments between two of `states` each: (i, j) -> points. All at once, which costs least."""
    for points in pairs.values():
        if points < 2:
            raise SwampError(f"a segment has two ends, so that points must be 2 or more, got {points}.")
    shares = [tuple(k / (points - 1) for k in range(points)) for points in pairs.values()]
    found = iter(
        values(
            Blend(states, [{i: 1 - share, j: share}.get(n, 0.0) for n in range(len(states))])
            for (i, j), way in zip(pairs, shares, strict=True)
            for share in way
        )
    )
    return [Connection(way, tuple(islice(found, len(way)))) for way in shares]


def require_fit(model: nn.Module, state: State, what: str) -> None:
    """Raise SwampError naming the first tensor of `state` that is missing, unknown or of another shape."""
    own: Mapping[str, Tensor] = model.state_dict()
    odd = [f"{name!r} is missing" for name in own if name not in state]
    odd += [f"{name!r} is unknown" for name in state if name not in own]
    odd += [
        f"{name!r} has shape {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if odd:
        raise SwampError(
            f"{what} does not fit this {type(model).__name__}: {shortened(odd)}. Give weights of this model."
        )


def connectivity(subject: Subject, settings: Settings) -> Iterator[Unit]:
    """Is there a barrier between the particles of a cycle, or between the means of consecutive cycles?"""
    values = Points(subject.model, subject.task, examples=settings.examples)
    several = set(subject.with_particles(2))
    for index in range(subject.cycles):
        if index + 1 < subject.cycles:
            yield Unit(f"connectivity/cycle-{index:02d}/next", partial(_next, subject, settings, values, index))
        if index in several:
            yield Unit(
                f"connectivity/cycle-{index:02d}/particles", partial(_particles, subject, settings, values, index)
            )


def _next(subject: Subject, settings: Settings, values: Points, index: int) -> dict[str, Any]:
    earlier, later = subject.cycle(index), subject.cycle(index + 1)
    found = segment(values, earlier.weights, later.weights, settings.points)
    return {
        "cycle": index,
        "sparsity": earlier.sparsity,
        "between": [f"cycle-{index:02d}", f"cycle-{index + 1:02d}"],
        # Where the later mask is part of the earlier one, as in all iterative methods, the way lives on the earlier.
        "nested": later.mask.issubset(earlier.mask),
        **found.to_json(),
        "pairs": None,
    }


def _particles(subject: Subject, settings: Settings, values: Points, index: int) -> dict[str, Any]:
    states = tuple(particle.weights for particle in subject.require_particles(index))
    pairs = [*combinations(range(len(states)), 2)] if len(states) <= MOST_PAIRS else [(0, 1)]
    # The first pair is looked at closely; a quarter of the points tells how high the others' barriers are.
    fewer = max(2, settings.points // 4)
    ways = _ways(values, states, {pair: settings.points if pair == (0, 1) else fewer for pair in pairs})
    heights = [[0.0] * len(states) for _ in states]
    for (i, j), way in zip(pairs, ways, strict=True):
        heights[i][j] = heights[j][i] = way.barriers.error
    return {
        "cycle": index,
        "sparsity": subject.cycle(index).sparsity,
        "between": ["particle-0", "particle-1"],
        **ways[0].to_json(),
        "pairs": heights if len(states) <= MOST_PAIRS else None,
    }


def _chord(ends: Sequence[float], shares: Sequence[float]) -> list[float]:
    return [(1 - share) * ends[0] + share * ends[-1] for share in shares]


def _highest(values: Sequence[float], ground: Sequence[float]) -> float:
    """The largest height above ground. Python's max would pass over a NaN, depending on where it stands."""
    heights = [value - below for value, below in zip(values, ground, strict=True)]
    return math.nan if any(map(math.isnan, heights)) else max(heights)
