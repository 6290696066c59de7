"""The model of a cycle: the mean of its particles, a greedy soup of them, or the best of them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from swamp.algorithms.evaluator import Evaluator
from swamp.algorithms.method import Method
from swamp.algorithms.particles import Trained
from swamp.algorithms.plan import Plan
from swamp.backends import Particle
from swamp.backends.particle import mean_of, require_unbroken, warn_if_equal
from swamp.masks import Mask
from swamp.training.average import State, mean
from swamp.training.mask_updates import prune_to_budget
from swamp.training.metrics import comparable


class Average(NamedTuple):
    """The mask and weights of a cycle's model."""

    mask: Mask
    weights: State
    averaged: bool
    """Whether the weights are an average, or were pruned after training: both need new BatchNorm statistics."""


def aggregate(trained: Trained, plan: Plan, evaluator: Evaluator) -> Average:
    """Combine particles as the plan's method does; a mean over different masks is pruned to the size of the first."""
    if trained.samples is not None:
        return Average(
            *prune_to_budget(trained.samples, trained.masks[0], plan.structure, evaluator.ties), averaged=True
        )
    weights, averaged = combined(trained.particles, plan.spec, evaluator)
    if plan.spec.own_masks:
        return Average(*prune_to_budget(weights, trained.masks[0], plan.structure, evaluator.ties), averaged)
    return Average(trained.masks[0], weights, averaged or trained.projected)


def combined(particles: Sequence[Particle], method: Method, evaluator: Evaluator) -> tuple[State, bool]:
    """Combine particles by the method. Returns the weights, and whether they are an average of several models."""
    require_unbroken(particles)
    warn_if_equal(particles)
    if method.combine == "mean" or len(particles) == 1:
        # mean_of requires one common mask.
        average = mean(p.weights for p in particles) if method.own_masks else mean_of(particles)
        return average, len(particles) > 1 or particles[0].averaged > 1

    def error(model: nn.Module, candidate: tuple[State, bool]) -> float:
        weights, averaged = candidate
        return evaluator.error(evaluator.load(model, weights, None, refresh_bn=averaged))

    single = [(particle.weights, particle.averaged > 1) for particle in particles]
    errors = evaluator.map(error, single)
    order = sorted(range(len(particles)), key=lambda i: comparable(errors[i]))
    best = order[0]
    if method.combine == "best":
        return single[best]
    taken, lowest = [best], errors[best]
    for candidate in order[1:]:
        soup = mean(particles[i].weights for i in [*taken, candidate])
        (found,) = evaluator.map(error, [(soup, True)])
        # A greedy soup takes a particle that does not raise the error (Wortsman et al. 2022).
        if found <= lowest:
            taken, lowest = [*taken, candidate], found
    return single[best] if len(taken) == 1 else (mean(particles[i].weights for i in taken), True)
