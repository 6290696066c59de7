"""Ensembles of independent runs: their predicted probabilities are averaged at each sparsity."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor, nn

from swamp.algorithms.cycle import Cost, Cycle, ParticleRecord, SplitMetrics
from swamp.algorithms.loop import cycles
from swamp.algorithms.plan import Plan
from swamp.algorithms.store import Store
from swamp.backends import Backend
from swamp.model_copy import copied_model
from swamp.training import Seed, Task, Training, predict
from swamp.training.average import State
from swamp.training.data import Data
from swamp.training.dry_run import dry_run
from swamp.training.module_extra_state import load_state

MEMBER_METHOD = "imp"


def member_seed(seed: int, member: int) -> int:
    """Seed of one member. Member 0 has the ensemble's seed, so that it equals the plain run of that seed."""
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
    """Yield the cycles of an ensemble of N = max(plan.particles) independent IMP runs.

    Args:
        initial: Seed -> model with the initial weights of that seed.
        task: Data, loss and metrics.
        plan: The plan of the ensemble; each member is an IMP run with one particle and its own seed.
        training: How each member is trained.
        backend: See `cycles`.
        store: See `cycles`; each member has its own part of it.

    Returns:
        An iterator of cycles, measured on the members' joint prediction. `particles` of a cycle are its members; its
        cost is their sum; its weights and mask are the first member's, as no single network predicts like the ensemble.

    Raises:
        SwampError: See `cycles`.
    """
    task.require_outputs("an ensemble")
    store = store or Store()
    numbers = range(plan.most_particles)
    plans = [
        replace(plan, method=MEMBER_METHOD, particles=(1,), seed=member_seed(plan.seed, number)) for number in numbers
    ]
    models = [initial(own.seed) for own in plans]
    dry_run(models[0], task, training, prunable=set(), joint=True)
    members = [
        cycles(model, task, own, training, backend=backend, store=store.member(number, len(numbers)))
        for number, model, own in zip(numbers, models, plans, strict=True)
    ]
    return _joint_cycles(members, copied_model(models[0]), task, plan.evaluation_examples, store)


def _joint_cycles(
    members: Sequence[Iterator[Cycle]], model: nn.Module, task: Task, examples: int, store: Store
) -> Iterator[Cycle]:
    for of_members in zip(*members, strict=True):
        cycle = store.cycle(of_members[0].index)
        if cycle is None:
            store.progress(of_members[0].index, len(members)).on_stage(f"evaluating cycle {of_members[0].index}")
            cycle = _joined(of_members, model, task, examples)
            store.keep_cycle(cycle)
        yield cycle


def _joined(members: tuple[Cycle, ...], model: nn.Module, task: Task, examples: int) -> Cycle:
    states = [member.weights for member in members]

    def measured(data: Data, limit: int | None = None) -> dict[str, float]:
        outputs, targets = ensemble_predict(states, model, task, data, limit)
        return {name: metric(outputs, targets) for name, metric in task.metrics.items()}

    first = members[0]
    validation = None if task.validation is None else measured(task.validation)
    test = dict.fromkeys(task.metrics, math.nan) if task.test is None else measured(task.test)
    return Cycle(
        first.index,
        first.mask,
        first.weights,
        first.density_of_all,
        SplitMetrics(measured(task.train, examples), validation, test),
        tuple(
            ParticleRecord(m.metrics, m.cost.steps, m.cost.seconds, m.particles[0].loss, number)
            for number, m in enumerate(members)
        ),
        None,
        None,
        reduce(Cost.beside, (m.cost for m in members)),
        reduce(Cost.beside, (m.total for m in members)),
        tuple(warning for m in members for warning in m.warnings),
        first.heads,
        tuple(replace(one, particle=number) for number, m in enumerate(members) for one in m.divergences),
    )


def ensemble_predict(
    states: list[State], model: nn.Module, task: Task, data: Data, examples: int | None = None
) -> tuple[Tensor, Tensor]:
    """The ensemble's predictions (for classification the log of the mean probabilities), and the targets."""
    found: list[Tensor] = []
    targets = torch.empty(0)
    for state in states:
        load_state(model, state)
        outputs, targets = predict(model, task, data, examples=examples)
        found.append(outputs)
    return task.combine(found), targets
