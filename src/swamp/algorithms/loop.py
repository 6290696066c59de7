"""The one loop: train a ticket; in each cycle train particles from it, average, evaluate, and prune the average.

`_cycles` and `_train_cycle` are the lines at the top of docs/explanation/method.md. A step whose result is stored is
not repeated: that is how a run resumes.
"""

import time
from collections.abc import Iterator, Mapping

from torch import nn

from swamp.algorithms.aggregate import aggregate
from swamp.algorithms.backend_choice import choose_backend
from swamp.algorithms.cycle import Cycle
from swamp.algorithms.cycle_spec import CycleSpec, carried_on, first_spec, prune_mean, rewound
from swamp.algorithms.dynamic import train_dynamic
from swamp.algorithms.evaluate import evaluate_cycle
from swamp.algorithms.lottery_pools import pooled
from swamp.algorithms.particles import train_particles, train_ticket
from swamp.algorithms.plan import Plan
from swamp.algorithms.setup import Setup
from swamp.algorithms.store import Store
from swamp.backends import Backend, Ticket
from swamp.errors import Diverged, SwampError
from swamp.masks import Mask
from swamp.training import Task, Training
from swamp.training.nan_checks import require_finite_given


def cycles(
    model: nn.Module,
    task: Task,
    plan: Plan,
    training: Training,
    *,
    backend: Backend | str | None = None,
    store: Store | None = None,
) -> Iterator[Cycle]:
    """Yield one finished cycle after another, densest first; `swamp.cycles` documents the arguments."""
    store = store or Store()
    backend = choose_backend(model, task, plan, training, backend, store)
    if plan.spec.pools:
        setup = Setup(model, task, plan, training, backend, store.member(0))
        return pooled(_cycles(setup), plan, setup.evaluator, store)
    return _cycles(Setup(model, task, plan, training, backend, store))


def _cycles(setup: Setup) -> Iterator[Cycle]:
    ticket = train_ticket(setup)
    previous: Cycle | None = None
    for index in range(len(setup.schedule)):
        cycle = setup.store.cycle(index)
        if cycle is None:
            setup.store.progress(index, setup.schedule.particles[index]).on_stage(f"pruning for cycle {index}")
            if previous is None:
                spec = first_spec(setup, index, ticket)  # dense, or the mask of a method that needs no earlier cycle
            else:
                begin = carried_on if setup.plan.spec.start == "pruned" else rewound
                spec = begin(setup, index, ticket, previous, prune_mean(setup, index, previous))
            cycle = _train_cycle(setup, index, spec)
        yield cycle
        # One-shot methods prune the dense cycle for every sparsity; one-cycle methods prune no other cycle.
        if setup.plan.spec.masks == "iterative" or (setup.plan.spec.masks == "once" and index == 0):
            previous = cycle


def _train_cycle(setup: Setup, index: int, spec: CycleSpec) -> Cycle:
    """Train particles on the mask of `spec`, average them, evaluate and store the result."""
    began = time.perf_counter()
    try:
        train = train_dynamic if setup.plan.spec.masks == "dynamic" else train_particles
        trained = train(setup, index, spec)
    except Diverged as error:
        raise Diverged(f"cycle {index}, {error} What was finished before is kept.", error.steps) from error
    setup.store.progress(index, len(trained.particles)).on_stage(f"evaluating cycle {index}")
    average = aggregate(trained, setup.plan, setup.evaluator)
    cycle = evaluate_cycle(setup, index, spec, trained, average, began)
    setup.store.keep_cycle(cycle)
    return cycle


def train_on(
    masks: Mapping[int, Mask],
    ticket: Ticket,
    model: nn.Module,
    task: Task,
    plan: Plan,
    training: Training,
    *,
    backend: Backend | str | None = None,
    store: Store | None = None,
) -> Iterator[Cycle]:
    """Yield cycles on given masks (of another run, say); everything else is as in `swamp.cycles`.

    Args:
        masks: Cycle -> mask. The cycle determines the number of particles and their batch orders.
        ticket: Weights at which the particles start.
        model: Architecture.
        task: Data, loss and metrics.
        plan: A method that rewinds to a ticket.
        training: How each particle is trained.
        backend: See `swamp.cycles`.
        store: See `swamp.cycles`.

    Returns:
        An iterator of the cycles, in the order of `masks`. Costs are those of these trainings alone.

    Raises:
        SwampError: The method does not rewind to a ticket, or a mask or cycle does not belong to this model and plan.
    """
    if not plan.spec.rewinds:
        raise SwampError(
            f"{plan.method} does not train every cycle from one ticket, so it cannot train given masks. "
            "Take imp, swamp, or another method that rewinds."
        )
    store = store or Store()
    backend = choose_backend(model, task, plan, training, backend, store)
    setup = Setup(model, task, plan, training, backend, store, given_ticket=True)
    named = [name for name, _ in model.named_parameters() if name in ticket.weights]
    require_finite_given({name: ticket.weights[name] for name in named}, "the ticket's weights")
    for index, mask in masks.items():
        mask.overlap(setup.dense)  # raises for the mask of another model
        if not 0 <= index < len(setup.schedule):
            raise SwampError(f"the plan has cycles 0 to {len(setup.schedule) - 1}, and a mask was given for {index}.")
    return (_cycle_on(setup, index, mask, ticket) for index, mask in masks.items())


def _cycle_on(setup: Setup, index: int, mask: Mask, ticket: Ticket) -> Cycle:
    stored = setup.store.cycle(index)
    if stored is not None and stored.mask != mask:
        raise SwampError(
            f"the stored cycle {index} was trained on another mask than is given now. Delete what is stored, or "
            "keep the new one elsewhere."
        )
    return stored or _train_cycle(
        setup, index, CycleSpec(ticket, mask, setup.training_of(index), setup.first_step(index))
    )
