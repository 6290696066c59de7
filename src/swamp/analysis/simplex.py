"""Points of the hull of some networks: shares of each that sum to 1."""

from collections.abc import Sequence

import numpy as np

from swamp.training import Seed

Shares = tuple[float, ...]
"""One a network, none negative, summing to 1: barycentric coordinates."""

STEPS = 6
"""Steps of a side of the grid over a triangle, and of an edge."""


def corner(index: int, count: int) -> Shares:
    """All of one network."""
    return tuple(float(n == index) for n in range(count))


def centre(count: int, of: Sequence[int] | None = None) -> Shares:
    """Equal shares, of all or of those that are named."""
    taken = range(count) if of is None else of
    return tuple(1 / len(taken) if n in taken else 0.0 for n in range(count))


def samples(many: int, count: int, seed: Seed, concentration: float = 1.0) -> list[Shares]:
    """Random points of the hull, Dirichlet: uniform at a concentration of 1, nearer to its corners below."""
    drawn = np.random.default_rng(seed.number()).dirichlet([concentration] * count, many)
    return [tuple(row) for row in drawn.tolist()]


def edge(i: int, j: int, count: int) -> list[Shares]:
    """Inner points between networks i and j, from i to j: at 1/3, 1/2 and 2/3, which a triangle's grid has too."""
    return [_of(count, {i: STEPS - k, j: k}) for k in range(STEPS // 3, STEPS - STEPS // 3 + 1)]


def triangle(count: int) -> list[Shares]:
    """A grid over the triangle of the first three networks, its sides included."""
    rows = ((a, b) for a in range(STEPS, -1, -1) for b in range(STEPS - a, -1, -1))
    return [_of(count, {0: a, 1: b, 2: STEPS - a - b}) for a, b in rows]


def _of(count: int, steps: dict[int, int]) -> Shares:
    return tuple(steps.get(n, 0) / STEPS for n in range(count))
