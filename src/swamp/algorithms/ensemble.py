"""Ensembles: whole runs side by side, their predicted probabilities averaged at each sparsity."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from swamp.algorithms.cycle import Cost, Cycle, Measured, ParticleRecord
from swamp.algorithms.cycles import cycles_in_step
from swamp.algorithms.plan import Plan
from swamp.algorithms.store import NoStore, Store
from swamp.backends import Backend
from swamp.training import Data, Seed, State, Task, Training, predict

MEMBER_METHOD = "imp"


def member_seed(seed: int, member: int) -> int:
    """Seed of one member; member 0 has the run's own, so that it is the plain run of that seed."""
    return seed if member == 0 else Seed(seed).at("member", member).number()


def ensemble(
    initial: Callable[[int], nn.Module],
    task: Task,
    plan: Plan,
    training: Training,
    *,
    backend: Backend | str | None = None,
    store: Store | None = None,
) -> Iterator[Cycle]:
    """Yield the cycles of N = max(plan.particles) whole IMP runs as one; `particles` of each record are its members.

    They go through the cycles together, and in each their single particles are trained at once.

    initial: seed -> model with that seed's initial weights. Steps and seconds are the sum over members; the weights
    and mask of a record are its first member's, as no single network has the ensemble's predictions.
    """
    kept = store or NoStore()
    numbers = range(plan.most_particles)
    own = replace(plan, method=MEMBER_METHOD, particles=(1,))
    plans = [replace(own, seed=member_seed(plan.seed, number)) for number in numbers]
    models = [initial(one.seed) for one in plans]
    stores = [kept.member(number, len(numbers)) for number in numbers]
    members = cycles_in_step(models, task, plans, training, backend=backend, stores=stores)
    return _together(members, copy.deepcopy(models[0]), task, plan.evaluation_examples, kept)


def _together(
    runs: Iterator[tuple[Cycle, ...]], model: nn.Module, task: Task, examples: int, store: Store
) -> Iterator[Cycle]:
    for members in runs:
        cycle = store.cycle(members[0].index)
        if cycle is None:
            cycle = _joined(members, model, task, examples)
            store.keep_cycle(cycle)
        yield cycle


def _joined(members: tuple[Cycle, ...], model: nn.Module, task: Task, examples: int) -> Cycle:
    states = [member.weights for member in members]

    def measured(data: Data, limit: int | None = None) -> dict[str, float]:
        outputs, targets = ensemble_predict(states, model, task, data, limit)
        return {name: metric(outputs, targets) for name, metric in task.metrics.items()}

    first = members[0]
    validation = None if task.validation is None else measured(task.validation)
    return Cycle(
        first.index,
        first.mask,
        first.weights,
        first.density_of_all,
        Measured(measured(task.train, examples), validation, measured(task.test)),
        tuple(
            ParticleRecord(m.measured, m.cost.steps, m.cost.seconds, m.particles[0].loss, number)
            for number, m in enumerate(members)
        ),
        None,
        None,
        sum((m.cost for m in members), Cost()),
        sum((m.total for m in members), Cost()),
        tuple(warning for m in members for warning in m.warnings),
        first.heads,
        tuple(replace(broke, particle=number) for number, m in enumerate(members) for broke in m.broken),
    )


def ensemble_predict(
    states: list[State], model: nn.Module, task: Task, data: Data, examples: int | None = None
) -> tuple[Tensor, Tensor]:
    """What the members predict together (most often the log of their mean probabilities), and the targets."""
    found: list[Tensor] = []
    targets = torch.empty(0)
    for state in states:
        model.load_state_dict(dict(state))
        outputs, targets = predict(model, task, data, examples=examples)
        found.append(outputs)
    return task.together(found), targets
