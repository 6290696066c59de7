"""Budget: numbers of cycles, particles and epochs that cost a given number of dense trainings.

The cost counts passes over the training data, of all particles, trunks, members and of the ticket: what a machine with
dense kernels computes, known before the run. docs/explanation/adaptive.md has the measurements behind the rule: more
cycles and longer trainings alike, of one particle unless a method or number is asked for.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from swamp.algorithms import Plan
from swamp.algorithms.unused import unused_options
from swamp.backends import Sequential, Ticket, TrainRequest
from swamp.backends.autotune import seconds_a_step
from swamp.backends.rank_variables import world_size
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.runs.config import RunConfig
from swamp.runs.execute import executing, prepare
from swamp.training import Seed, Training

BUDGET_TOLERANCE = 0.03
"""Largest deviation of the cost from the budget, as a fraction: epochs are whole numbers."""
COST_TOLERANCE = 0.1
"""Largest deviation of the cost of a trial from that of the others, as a fraction."""
_SINGLE, _SEVERAL = "lrr", "swamp-late-carry"
"""Methods of a budget, where none was asked for; several particles only if their number was."""
_MOST_PARTICLES = 8
_MOST = 1_000_000
"""Dense trainings; a larger budget is taken for a mistake."""
_SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}


def cost_of(config: RunConfig) -> float:
    """Passes over the training data of a whole run, see `training_cost`."""
    return training_cost(config.plan, config.training)


def training_cost(plan: Plan, training: Training, epochs: int | None = None) -> float:
    """Passes over the training data of a whole run: the epochs of all its particles, and of the ticket.

    Each pass is one forward and one backward computation; an epoch of SAM or ASAM has two.

    epochs: Number of epochs in place of `training.epochs`. Other options of `training`, such as the warm-up, may not
    allow it: the cost is computed without making such a Training.
    """
    passes = plan.spec.training(training).passes
    ticket = 0.0 if "ticket_epochs" in unused_options(plan, training) else plan.ticket_epochs
    members = plan.most_particles if plan.spec.ensemble else 1
    return passes * total_epochs(plan, training.epochs if epochs is None else epochs) + ticket * members


def total_epochs(plan: Plan, epochs: int) -> float:
    """Epochs of all particles of a run, without the ticket's. epochs: those of `Training`."""
    members = plan.most_particles if plan.spec.ensemble else 1
    return members * sum(plan.cycle_epochs(cycle, epochs) for cycle in range(len(plan.schedule())))


def at_equal_cost(config: RunConfig, cost: float) -> RunConfig:
    """The configuration with the number of epochs at which its cost is nearest to `cost`, see `training_cost`.

    Raises:
        SwampError: It would deviate by more than a tenth, as epochs are whole numbers; or epochs are impossible.
    """

    def cost_at(epochs: int) -> float:
        return training_cost(config.plan, config.training, epochs)

    if "auto" in config.plan.particles:
        raise SwampError('all trials cost the same, and particles="auto" costs what it finds. Give a number.')
    one, two = cost_at(1), cost_at(2)
    epochs = max(1, round((cost - (2 * one - two)) / (two - one)))
    deviation = cost_at(epochs) / cost - 1
    if abs(deviation) > COST_TOLERANCE:
        raise SwampError(
            f"with {epochs} epoch{'s' if epochs > 1 else ''}, the nearest whole number, it would cost "
            f"{100 * abs(deviation):.0f} % {'more' if deviation > 0 else 'less'} than the other trials. More epochs in "
            "the recipe (--epochs) divide more finely."
        )
    return replace(config, training=replace(config.training, epochs=epochs))


@dataclass(frozen=True)
class Allotment:
    """How a budget is spent."""

    plan: Plan
    training: Training
    budget: float
    """Dense trainings."""
    dense: int
    """Epochs of a dense training."""

    @property
    def cost(self) -> float:
        """Dense trainings that the run costs."""
        return training_cost(self.plan, self.training) / self.dense

    @property
    def sentence(self) -> str:
        """What is trained."""
        plan, schedule = self.plan, self.plan.schedule()
        epochs = [plan.particle_epochs(cycle, self.training.epochs) for cycle in range(len(schedule))]
        count = max(schedule.particles) * (plan.most_particles if plan.spec.ensemble else 1)
        last = f", {epochs[-1]} in the last one" if epochs[-1] != epochs[0] else ""
        return (
            f"{plan.method}, {_counted(len(schedule), 'cycle')} with {_counted(count, 'particle')} of "
            f"{_counted(epochs[0], 'epoch')}{last}: {self.cost:.2f} dense trainings of {self.dense} epochs"
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def dense_trainings(text: str, seconds: Callable[[], float]) -> float:
    """The budget that `text` gives: a number of dense trainings, or a time such as 30min.

    Args:
        text: For example 12, 90s, 30min or 1.5h.
        seconds: Measures the time of a dense training; called for a time only.

    Raises:
        SwampError: It is neither.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", text)
    unit = found[2] if found else "?"
    if found is None or (unit and unit not in _SECONDS):
        raise SwampError(
            f"a budget is a number of dense trainings, such as 12, or a time, such as 30min or 2h, got {text!r}."
        )
    return float(found[1]) if not unit else float(found[1]) * _SECONDS[unit] / seconds()


def seconds_of_dense_training(config: RunConfig) -> float:
    """Time of one dense training on this machine, from a moment of one.

    Raises:
        SwampError: Several ranks would measure different times; or an agent is trained, in environments.
    """
    if world_size() > 1:
        raise SwampError("the ranks of a job would each measure another time: give a budget in dense trainings.")
    with executing(config):
        problem, model = prepare(config)
        if problem.agent is not None:
            raise SwampError("the time of an agent's environments is not measured: give a budget in dense trainings.")
        start, mask = Ticket(model.state_dict(), 0), Mask.ones(model, config.plan.scope)
        request = TrainRequest(start, mask, config.training, [(0, Seed(config.plan.seed).at("budget"))])
        each = seconds_a_step(Sequential(model, problem.task), request, 1)
        return each * config.training.epochs * problem.task.train.steps(config.training.batch_size)


def allot(plan: Plan, training: Training, budget: float, given: Collection[str] = ()) -> Allotment:
    """Spend `budget` dense trainings.

    Args:
        plan: What is pruned, and how much. With fewer trainings than cycles, there are fewer, larger prunings.
        training: How a dense network is trained; its epochs are one dense training.
        budget: Dense trainings; the dense cycle and one pruned one need two.
        given: Options (fields) that stay as they are, such as cycles and particles.

    Raises:
        SwampError: The budget is too small, an option that it sets was given, or whole epochs cost another sum.
    """
    for name in ("retrain_epochs", "last_epochs"):
        if name in given:
            raise SwampError(f"a budget sets {name}. Leave one of them out.")
    if "auto" in plan.particles:
        raise SwampError('a budget is spent in advance, and particles="auto" costs what it finds. Give one of them.')
    least = 1 if plan.spec.independent else 2
    if not budget >= least:
        raise SwampError(
            f"a budget of {budget:g} dense trainings is too small: the dense cycle and one pruned cycle need {least}."
        )
    if budget > _MOST:
        raise SwampError(f"a budget of {budget:g} dense trainings is too large: {_MOST:,} is the most.")
    dense, total = training.epochs, budget * training.epochs
    for candidate in _candidates(plan, budget, given):
        found = _filled(candidate, training, total)
        if found is not None and abs(training_cost(*found) / total - 1) <= BUDGET_TOLERANCE:
            return Allotment(*found, budget, dense)
    raise SwampError(
        f"a budget of {budget:g} dense trainings of {dense} epochs cannot be divided into whole epochs within "
        f"{100 * BUDGET_TOLERANCE:.0f} %. Take a larger budget, or more epochs per training."
    )


def _candidates(plan: Plan, budget: float, given: Collection[str]) -> Iterator[Plan]:
    """Plans by preference: with the budget, the number of cycles grows as their length does; then fewer cycles."""
    cycles = len(plan.schedule())
    fixed = plan.spec.independent or plan.densities or {"cycles", "densities", "prune_fraction"} & {*given}
    counts = [cycles] if fixed else range(max(2, min(cycles, 1 + round(budget**0.5))), 1, -1)
    for count in counts:
        # As many prunings as the plan has: with its own densities.
        shorter = plan if count == cycles else replace(plan, cycles=count - 1, prune_fraction=plan.prune_fraction[:1])
        yield _with_particles(shorter, budget / count, given)


def _with_particles(plan: Plan, share: float, given: Collection[str]) -> Plan:
    """The plan with a method and a number of particles. share: dense trainings that a cycle may cost."""
    if "method" not in given and not plan.spec.independent:
        several = "particles" in given and plan.most_particles > 1
        plan = replace(plan, method=_SEVERAL if several else _SINGLE)
    if "particles" in given or not plan.spec.multi_particle:
        return plan
    # Particles that share a trunk train longer than their part of the cost.
    each = 1.0 if plan.branch_fraction == 1 else 2.0
    return replace(plan, particles=(max(1, min(_MOST_PARTICLES, int(share / each))),))


def _filled(plan: Plan, training: Training, total: float) -> tuple[Plan, Training] | None:
    """Epochs that cost at most `total`: equal ones, then as many as are left for the last cycle. None: too few."""

    def ending(last: int) -> Plan:
        return replace(plan, last_epochs=last)

    def most(cost: Callable[[int], float]) -> int:
        """The largest number of epochs with a cost of `total` at most; the cost rises with it."""
        return bisect_right(range(1, int(total) + 2), total, key=cost)

    epochs = most(lambda epochs: training_cost(ending(0), training, epochs))
    if epochs < 1 or (plan.spec.rewinds and plan.ticket_epochs >= epochs):
        return None
    shorter = replace(training, epochs=epochs)
    if plan.spec.independent:
        return ending(0), shorter
    last = most(lambda last: training_cost(ending(last), training, epochs))
    return ending(last if last != epochs else 0), shorter
