"""All that is measured of a cycle, at once: its particles, what stands for it, the barriers between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from swamp.algorithms.cycle import Metrics, ParticleRecord
from swamp.algorithms.measure import Judged, Measure
from swamp.algorithms.stability import Barrier, Point, barrier
from swamp.backends import Particle
from swamp.masks import Mask
from swamp.training import State, interpolate, norm_layers

_STATISTICS = 2048
"""Training examples that the normalisation statistics of a barrier's points are made on."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """What was measured of one cycle."""

    particles: tuple[ParticleRecord, ...]
    model: Judged
    stale: Metrics | None
    barrier: Barrier | None


def judge(
    model: nn.Module,
    measure: Measure,
    particles: Sequence[Particle],
    masks: Sequence[Mask],
    chosen: State,
    averaged: bool,
    mask: Mask,
    barrier_points: int,
) -> Judgement:
    """Measure particles, each on its own of `masks`, and `chosen`, which stands for them, on `mask`.

    barrier_points: how many between the first two particles, and the barrier of `chosen` with them; 0: none.
    """
    wanted = len(particles) > 1 and bool(barrier_points)
    normed = bool(norm_layers(model))
    # A barrier's end needs statistics made for it: a last iterate is measured with its own, and once more for it.
    again = wanted and normed and any(particle.averaged < 2 for particle in particles)
    points = _points(particles, barrier_points, again=again) if wanted else []
    common = mask if all(own == mask for own in masks) else None

    def error(model: nn.Module, point: Point) -> float:
        # A dozen points: statistics from all of a large training set would cost like another particle.
        examples = min(measure.examples, _STATISTICS)
        return measure.error(measure.loaded(model, point(), common, refresh=True, examples=examples))

    members = [(p.weights, own, p.averaged > 1) for p, own in zip(particles, masks, strict=True)]
    # What stands for a single particle is that particle, most often: it is measured once.
    alone = len(members) == 1 and masks[0] == mask and members[0][2] == averaged and _equal(members[0][0], chosen)
    whole = [
        partial(measure.judged, weights=weights, mask=own, refresh=refresh, with_error=wanted)
        for weights, own, refresh in [*members, *([] if alone else [(chosen, mask, averaged)])]
    ]
    jobs: list[Callable[[nn.Module], Any]] = [*whole, *(partial(error, point=point) for point in points)]
    if averaged and normed:
        jobs.append(partial(measure.stale, weights=chosen, mask=mask))
    found = measure.each(lambda model, job: job(model), jobs)
    stale = found.pop() if averaged and normed else None
    of_particles, of_chosen = found[: len(particles)], found[len(whole) - 1]
    errors = found[len(whole) :]
    ends = errors[: len(particles)] if again else [one.error for one in of_particles]
    height = barrier(ends, of_chosen.error, errors[len(particles) :] if again else errors) if wanted else None
    records = [
        ParticleRecord(one.measured, particle.steps, particle.seconds, particle.losses[-1], particle.index)
        for one, particle in zip(of_particles, particles, strict=True)
    ]
    return Judgement(tuple(records), of_chosen, stale, height)


def _points(particles: Sequence[Particle], count: int, *, again: bool) -> list[Point]:
    """Where the barrier is measured besides the models of the record, made when they are asked for."""
    one, other = particles[0].weights, particles[1].weights
    inner = [partial(interpolate, one, other, k / (count + 1)) for k in range(1, count + 1)]
    ends = [partial(dict[str, Tensor], particle.weights) for particle in particles] if again else []
    return [*ends, *inner]


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
