"""Evaluation of a cycle: metrics of its particles and of its model, and the error barriers between them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from swamp.algorithms.aggregate import Average
from swamp.algorithms.cycle import Barrier, Cost, Cycle, Metrics, ParticleRecord
from swamp.algorithms.cycle_spec import CycleSpec
from swamp.algorithms.evaluator import Evaluation, Evaluator
from swamp.algorithms.particles import Trained
from swamp.algorithms.setup import Setup
from swamp.backends import Particle
from swamp.errors import warn
from swamp.masks import Mask
from swamp.masks.heads import head_densities
from swamp.masks.pruning import empty_layer_warning
from swamp.training.average import State, interpolate
from swamp.training.batchnorm import batchnorm_layers
from swamp.training.metrics import highest
from swamp.training.module_extra_state import load_state

_BARRIER_BN_EXAMPLES = 2048
"""Training examples for the BatchNorm statistics of each point of a barrier."""


def evaluate_cycle(
    setup: Setup, index: int, spec: CycleSpec, trained: Trained, average: Average, began: float
) -> Cycle:
    """The record of a cycle: metrics, barriers and cost of its averaged particles. began: perf_counter at its start."""
    plan, method, mask = setup.plan, setup.plan.spec, average.mask
    divergences = (*(setup.divergence.of(None) if spec.trained_ticket else ()), *setup.divergence.of(index))
    empty_layers = empty_layer_warning(spec.mask, mask) if method.masks == "dynamic" else None
    notes = [*dict.fromkeys([*spec.notes, *trained.notes, *filter(None, [empty_layers])])]
    if index == 0 and not setup.has_unit_error and plan.most_particles > 1 and method.combine == "mean":
        notes.append("Barriers are not measured: the task names no error in [0, 1], see error and error_scale.")
    points = plan.barrier_points if method.combine == "mean" and setup.has_unit_error else 0
    models = evaluate_models(setup.model, setup.evaluator, trained.particles, trained.masks, average, points)
    warning = models.barrier and models.barrier.warning(index, mask.sparsity, plan.barrier_threshold)
    if warning:
        warn(warning)
        notes.append(warning)
    load_state(setup.model, models.average.state)
    steps, flops = trained.steps, trained.flops + spec.scoring_flops
    sequential = trained.sequential_steps * spec.training.passes
    if spec.trained_ticket:
        ticket_steps = setup.ticket_steps + sum(one.steps for one in setup.divergence.of(None))
        steps += ticket_steps
        sequential += ticket_steps
        flops += ticket_steps * setup.batch * setup.flops.training_step(setup.dense, setup.ticket_training)
    cost = Cost(steps, round(steps * setup.batch), flops, time.perf_counter() - began + trained.seconds, sequential)
    return Cycle(
        index,
        mask,
        models.average.state,
        mask.density_of_all(setup.model),
        models.average.metrics,
        models.particles,
        models.barrier,
        models.before_bn_update,
        cost,
        spec.earlier + cost,
        tuple(notes),
        head_densities(setup.model, mask),
        divergences,
        trained.particles[0].state,
        trained.trunk,
        trained.waves,
    )


@dataclass(frozen=True, eq=False)
class ModelEvaluations:
    """Evaluations of the models of one cycle."""

    particles: tuple[ParticleRecord, ...]
    average: Evaluation
    before_bn_update: Metrics | None
    barrier: Barrier | None


def evaluate_models(
    model: nn.Module,
    evaluator: Evaluator,
    particles: Sequence[Particle],
    masks: Sequence[Mask],
    average: Average,
    barrier_points: int,
) -> ModelEvaluations:
    """Evaluate every particle on its mask, and the averaged model on its own.

    barrier_points: points between the first two particles at which their error barrier is measured; 0: no barriers.
    """
    measure_barrier = len(particles) > 1 and bool(barrier_points)
    has_bn = bool(batchnorm_layers(model))
    # The ends of a barrier need re-estimated statistics: a last iterate is evaluated with its own, and once more.
    ends_again = measure_barrier and has_bn and any(particle.averaged < 2 for particle in particles)
    points = _barrier_points(particles, barrier_points, ends=ends_again) if measure_barrier else []
    common = average.mask if all(mask == average.mask for mask in masks) else None

    def point_error(model: nn.Module, point: Callable[[], State]) -> float:
        # Statistics on all of a large training set would cost as much as another particle for a dozen points.
        examples = min(evaluator.examples, _BARRIER_BN_EXAMPLES)
        return evaluator.error(evaluator.load(model, point(), common, refresh_bn=True, examples=examples))

    candidates = [(p.weights, mask, p.averaged > 1) for p, mask in zip(particles, masks, strict=True)]
    # The "average" of a single particle is most often that particle: it is evaluated once.
    single = len(candidates) == 1 and masks[0] == average.mask and candidates[0][2] == average.averaged
    if not (single and _equal(candidates[0][0], average.weights)):
        candidates.append((average.weights, average.mask, average.averaged))
    jobs: list[Callable[[nn.Module], Any]] = [
        partial(evaluator.evaluate, weights=weights, mask=mask, refresh_bn=refresh_bn, with_error=measure_barrier)
        for weights, mask, refresh_bn in candidates
    ]
    jobs += [partial(point_error, point=point) for point in points]
    compared = bool(average.averaged) and has_bn and evaluator.task.has_test
    if compared:
        jobs.append(partial(evaluator.metrics_before_bn_update, weights=average.weights, mask=average.mask))
    found = evaluator.map(lambda model, job: job(model), jobs)
    before_bn_update = found.pop() if compared else None
    of_particles, of_average = found[: len(particles)], found[len(candidates) - 1]
    errors = found[len(candidates) :]
    ends = errors[: len(particles)] if ends_again else [one.error for one in of_particles]
    inner = errors[len(particles) :] if ends_again else errors
    records = [
        ParticleRecord(one.metrics, particle.steps, particle.seconds, particle.losses[-1], particle.index)
        for one, particle in zip(of_particles, particles, strict=True)
    ]
    measured = barrier(ends, of_average.error, inner) if measure_barrier else None
    return ModelEvaluations(tuple(records), of_average, before_bn_update, measured)


def barrier(ends: Sequence[float], average: float, inner: Sequence[float]) -> Barrier:
    """The error barriers between particles, from errors in [0, 1].

    Args:
        ends: Error of each particle.
        average: Error of their mean.
        inner: Errors at points between the first two particles.

    All errors, those of `ends` too, must be measured with BatchNorm statistics re-estimated for each point. A barrier
    is NaN if one of its errors is.
    """
    worst = highest([*ends[:2], *inner])
    return Barrier(worst - (ends[0] + ends[1]) / 2, average - sum(ends) / len(ends))


def _barrier_points(particles: Sequence[Particle], count: int, *, ends: bool) -> list[Callable[[], State]]:
    """Yield the weights of all particles (if `ends`), then those at `count` points between the first two particles.

    The weights of a point are computed when it is evaluated, so that not all of them are in memory at once.
    """
    one, other = particles[0].weights, particles[1].weights
    inner = [partial(interpolate, one, other, k / (count + 1)) for k in range(1, count + 1)]
    return [*([partial(dict[str, Tensor], particle.weights) for particle in particles] if ends else []), *inner]


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
