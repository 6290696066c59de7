"""The loss around the particles of a cycle: in the plane through three of them, and along two random directions."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from swamp.analysis.analysis import Settings, Unit, spread
from swamp.analysis.points import Points
from swamp.analysis.space import Plane, Space, masked_weights
from swamp.analysis.subject import Subject
from swamp.errors import SwampError
from swamp.training import Seed, State

SIDE = 13
"""Points of a grid along each axis."""
MARGIN = 0.4
"""How far a grid reaches beyond the particles, as a share of their larger extent."""


def grid(values: Points, plane: Plane, u: Sequence[float], v: Sequence[float]) -> dict[str, Any]:
    """Loss and error at all (x, y) of the plane: a row for each of `v`, in it a column for each of `u`.

    Values that are not finite stay so; in an analysis' record, which is JSON, they are null.
    """
    found = iter(values(plane.at(x, y) for y in v for x in u))
    rows = [[next(found) for _ in u] for _ in v]
    return {
        "u": list(u),
        "v": list(v),
        "loss": [[value.loss for value in row] for row in rows],
        "error": [[value.error for value in row] for row in rows],
    }


def around(places: Sequence[tuple[float, float]], side: int = SIDE) -> tuple[list[float], list[float]]:
    """`side` evenly spaced coordinates along each axis, MARGIN beyond the places."""
    extents = [(min(axis), max(axis)) for axis in zip(*places, strict=True)]
    margin = MARGIN * max(high - low for low, high in extents)
    u, v = ([*_spaced(low - margin, high + margin, side)] for low, high in extents)
    return u, v


def random_plane(model: nn.Module, state: State, mask: Mapping[str, Tensor], seed: Seed) -> Plane:
    """Two filter-normalised random directions around `state` (Li et al. 2018), on the support of the mask.

    Each filter (the weights into one output) of a direction has the norm of the state's, so that 1 along it is a change
    as large as the weights, whatever their scale; biases and normalisation layers stay. The directions are not made
    orthogonal: in many dimensions they nearly are.
    """
    space = Space(model)
    generator = seed.generator()

    def direction() -> Tensor:
        parts = [_direction(state[name], mask.get(name), generator) for name in space.names]
        return torch.cat([part.reshape(-1) for part in parts])

    return Plane(space, state, direction(), direction())


def landscape(subject: Subject, settings: Settings) -> Iterator[Unit]:
    """How do loss and error look around the particles: is their mean in a flat valley that holds them all?"""
    values = Points(subject.model, subject.task, examples=settings.examples)
    for index in spread(subject.cycles):
        yield Unit(f"landscape/cycle-{index:02d}", partial(_plane, subject, values, index))
        yield Unit(f"landscape/cycle-{index:02d}/random", partial(_random, subject, settings, values, index))


def _plane(subject: Subject, values: Points, index: int) -> dict[str, Any]:
    cycle = subject.cycle(index)
    heading = {"cycle": index, "sparsity": cycle.sparsity}
    try:
        particles = subject.require_particles(index, 3)
        plane = Plane.through(subject.model, [particle.weights for particle in particles[:3]])
    except SwampError as error:
        # Told, not raised: the other cycles of the run may well have their plane.
        return {**heading, "skipped": str(error)}
    models: dict[str, State] = {f"particle-{p.index}": p.weights for p in particles}
    models["mean"] = cycle.weights
    if subject.ticket is not None:
        models["ticket"] = masked_weights(subject.ticket.weights, cycle.mask)
    places = {name: plane.project(state) for name, state in models.items()}
    u, v = around([(x, y) for name, (x, y, _) in places.items() if name.startswith("particle")])
    return {
        **heading,
        **grid(values, plane, u, v),
        "points": {name: [x, y] for name, (x, y, _) in places.items()},
        "off_plane": {name: distance for name, (_, _, distance) in places.items()},
    }


def _random(subject: Subject, settings: Settings, values: Points, index: int) -> dict[str, Any]:
    cycle = subject.cycle(index)
    seed = Seed(settings.seed).at("landscape", index)
    plane = random_plane(subject.model, cycle.weights, cycle.mask, seed)
    shares = [*_spaced(-1.0, 1.0, SIDE)]
    return {
        "cycle": index,
        "sparsity": cycle.sparsity,
        **grid(values, plane, shares, shares),
        "points": {"mean": [0.0, 0.0]},
        "off_plane": {"mean": 0.0},
    }


def _spaced(low: float, high: float, count: int) -> Iterator[float]:
    return (low + (high - low) * k / (count - 1) for k in range(count))


def _direction(weight: Tensor, alive: Tensor | None, generator: torch.Generator) -> Tensor:
    """A random tensor whose rows have the norms of the rows of `weight`; zero where that is not a matrix."""
    weight = weight.detach().to("cpu", torch.float64)
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    if alive is not None:
        drawn = drawn * alive.cpu()
    ours, drawns = (part.flatten(1).square().sum(1).sqrt() for part in (weight, drawn))
    scale = torch.where(drawns > 0, ours / drawns, 0.0)
    return drawn * scale.reshape(-1, *[1] * (weight.dim() - 1))
