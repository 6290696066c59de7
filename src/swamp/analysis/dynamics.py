"""The paths that particles take from the ticket: how they part, and from when on they stay connected."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from swamp.analysis.analysis import Settings, Unit
from swamp.analysis.connectivity import segment
from swamp.analysis.points import Points
from swamp.analysis.space import Space, length_of, masked_weights
from swamp.analysis.subject import Subject
from swamp.errors import SwampError
from swamp.runs import read_path
from swamp.training import State

STABLE = 0.02
"""Error barrier below which two models count as connected: 2 points (Frankle et al. 2020)."""
WAY = 7
"""Points of each way between two paths."""
MOST_POINTS = 200
"""Of a path that is looked at; of a longer one so many, evenly spaced."""
_NOTHING = 1e-12
"""Share of the variance below which it is rounding."""

Path = Mapping[int, State]
"""Step -> weights."""


@dataclass(frozen=True, eq=False)
class Principal:
    """Points in the plane of their two principal components."""

    places: list[list[tuple[float, float]]]
    """Of each path its points."""
    others: list[tuple[float, float]]
    """Projections of the other points, which had no say in the components."""
    explained: tuple[float, float]
    """Share of the variance along each."""


def principal(space: Space, paths: Sequence[Sequence[State]], others: Sequence[State] = ()) -> Principal:
    """Principal component analysis of all points of all paths, weight space being much wider than they are many.

    The components are those of the points about their mean, found from the Gram matrix of their inner products in
    float64; of each, the largest coordinate is positive. Raises SwampError for fewer than two points.
    """
    points = [state for path in paths for state in path]
    if len(points) < 2:
        raise SwampError(f"principal components need two points or more, got {len(points)}.")
    whole = torch.zeros(len(points) + len(others), len(points), dtype=torch.float64)
    for name in space.names:
        rows = torch.stack([s[name].detach().to("cpu", torch.float64).reshape(-1) for s in [*points, *others]])
        rows -= rows[: len(points)].mean(0)
        whole += rows @ rows[: len(points)].T
    gram = whole[: len(points)]
    total = float(gram.trace())
    (first, x), (second, y) = _components(whole, gram, total)
    found = list(zip(x, y, strict=True))
    ends = [0]
    for path in paths:
        ends.append(ends[-1] + len(path))
    return Principal(
        [found[low:high] for low, high in pairwise(ends)],
        found[len(points) :],
        (first / total, second / total) if total else (0.0, 0.0),
    )


def _components(whole: Tensor, gram: Tensor, total: float) -> list[tuple[float, list[float]]]:
    """Variance (summed over points) along the two principal components, and the coordinates of all points there."""
    solved: tuple[Tensor, Tensor] = cast(Any, torch.linalg).eigh(gram)
    found: list[tuple[float, list[float]]] = []
    for number in (-1, -2):
        value, vector = float(solved[0][number]), solved[1][:, number]
        if not value > _NOTHING * total:
            # A component along which nothing lies has no direction: all is at 0 there.
            found.append((0.0, [0.0] * len(whole)))
            continue
        sign = 1.0 if float(vector[vector.abs().argmax()]) > 0 else -1.0
        found.append((value, [float(place) for place in whole @ vector * (sign / value**0.5)]))
    return found


def settled(steps: Sequence[int], barriers: Sequence[float], threshold: float = STABLE) -> int | None:
    """The first of `steps` from which on all barriers are below the threshold; None where the last one is not."""
    found = None
    for step, barrier in zip(reversed(steps), reversed(barriers), strict=True):
        if not barrier < threshold:
            break
        found = step
    return found


def paths(subject: Subject, settings: Settings) -> Iterator[Unit]:
    """How do particles move away from the ticket and from each other, and when does the barrier between them go?"""
    values = Points(subject.model, subject.task, examples=settings.examples)
    for index in range(subject.cycles):
        yield Unit(f"paths/cycle-{index:02d}", partial(_paths, subject, settings, values, index))


def _paths(subject: Subject, settings: Settings, values: Points, index: int) -> dict[str, Any]:
    cycle = subject.cycle(index)
    heading = {"cycle": index, "sparsity": cycle.sparsity}
    files = [subject.directory.trajectory(index, number) for number in subject.numbers(index)]
    taken = [_thinned(read_path(file, subject.directory), MOST_POINTS) for file in files]
    if not all(taken):
        return {
            **heading,
            "skipped": f"{subject.directory.path} has no paths of these particles. They are kept where the run is made "
            "with --path-every STEPS, and where its masks do not change in training.",
        }
    space = Space(subject.model)
    extra = {f"particle-{p.index}": p.weights for p in subject.particles(index)}
    extra["mean"] = cycle.weights
    if subject.ticket is not None:
        extra["ticket"] = masked_weights(subject.ticket.weights, cycle.mask)
    found = principal(space, [list(path.values()) for path in taken], list(extra.values()))
    start = space.vector(extra["ticket"]) if "ticket" in extra else None
    steps, barriers = _barriers(taken, cycle.weights, settings, values) if len(taken) > 1 else ([], [])
    return {
        **heading,
        "particles": [
            _particle(space, path, taken[0], start, places) for path, places in zip(taken, found.places, strict=True)
        ],
        "explained": list(found.explained),
        "points": dict(zip(extra, map(list, found.others), strict=True)),
        "barriers": {"steps": steps, "error": barriers},
        "settled": settled(steps, barriers),
    }


def _particle(
    space: Space, path: Path, first: Path, start: Tensor | None, places: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Where one particle was, step by step, and how far from the ticket and from the first particle."""
    away: list[float] = []
    apart: list[float | None] = []
    # One after the other: in float64, all of them may be more than memory holds.
    for step, state in path.items():
        here = space.vector(state)
        if start is not None:
            away.append(length_of(here - start))
        apart.append(length_of(here - space.vector(first[step])) if step in first else None)
    return {
        "steps": list(path),
        "x": [x for x, _ in places],
        "y": [y for _, y in places],
        "from_ticket": None if start is None else away,
        "between": apart,
    }


def _barriers(taken: Sequence[Path], like: State, settings: Settings, values: Points) -> tuple[list[int], list[float]]:
    """Error barriers between the first two particles at the steps that both have a point of."""
    one, other = taken[:2]
    shared = list(_thinned({step: state for step, state in one.items() if step in other}, settings.points))
    # What a path leaves out is made anew at every point, or the same in all.
    ways = (segment(values, {**like, **one[step]}, {**like, **other[step]}, WAY) for step in shared)
    return shared, [way.barriers.error for way in ways]


def _thinned(path: Path, most: int) -> Path:
    """At most so many points, evenly spaced, the first and the last among them."""
    steps = list(path)
    if len(steps) > most:
        steps = [steps[round(k * (len(steps) - 1) / (most - 1))] for k in range(most)] if most > 1 else steps[-1:]
    return {step: path[step] for step in steps}
