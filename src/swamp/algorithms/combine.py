"""What stands for a cycle: the mean of its particles, a greedy soup of them, or the best one."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from swamp.algorithms.measure import Measure
from swamp.algorithms.method import Method
from swamp.algorithms.plan import Plan
from swamp.backends import Particle, mean_of, require_unbroken
from swamp.masks import Mask
from swamp.training import State, mean, within_budget


@dataclass(frozen=True, eq=False)
class Trained:
    """The particles of a cycle."""

    particles: list[Particle]
    masks: tuple[Mask, ...]
    """That of each particle: one for all, unless each has its own."""
    steps: int
    """Steps that were taken for them; those of a common trunk count once."""
    operations: float
    seconds: float
    """What training them took, in earlier sessions too."""
    samples: State | None = None
    """The mean over a cyclic tail whose samples have masks of their own; None where the particles are averaged."""


def chosen(trained: Trained, plan: Plan, measure: Measure) -> tuple[Mask, State, bool]:
    """The mask and weights that stand for the cycle, and whether they are an average, with statistics to renew."""
    if trained.samples is not None:
        return *within_budget(trained.samples, trained.masks[0], plan.structure), True
    weights, averaged = combined(trained.particles, plan.setting, measure)
    if plan.setting.own_masks:
        return *within_budget(weights, trained.masks[0], plan.structure), averaged
    return trained.masks[0], weights, averaged


def combined(particles: Sequence[Particle], method: Method, measure: Measure) -> tuple[State, bool]:
    """The weights that stand for particles, and whether they are an average."""
    require_unbroken(particles)
    if method.combine == "mean" or len(particles) == 1:
        # Particles with masks of their own cannot have one in common; those of one mask must.
        average = mean(p.weights for p in particles) if method.own_masks else mean_of(particles)
        return average, len(particles) > 1 or particles[0].averaged > 1

    def error(model: nn.Module, weights: tuple[State, bool]) -> float:
        state, averaged = weights
        return measure.error(measure.loaded(model, state, None, refresh=averaged))

    alone = [(particle.weights, particle.averaged > 1) for particle in particles]
    errors = measure.each(error, alone)
    order = sorted(range(len(particles)), key=lambda i: errors[i])
    best = order[0]
    if method.combine == "best":
        return alone[best]
    taken, lowest = [best], errors[best]
    for candidate in order[1:]:
        soup = mean(particles[i].weights for i in [*taken, candidate])
        (found,) = measure.each(error, [(soup, True)])
        # As in a greedy soup (Wortsman et al. 2022), what does no harm is taken.
        if found <= lowest:
            taken, lowest = [*taken, candidate], found
    return alone[best] if len(taken) == 1 else (mean(particles[i].weights for i in taken), True)
