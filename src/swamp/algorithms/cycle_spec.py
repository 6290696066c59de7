"""How a cycle begins: at which weights its particles start, on which mask, and how they train."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swamp.algorithms.cycle import Cost, Cycle
from swamp.algorithms.next_mask import Pruned
from swamp.algorithms.setup import Setup
from swamp.backends import Ticket
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.training import Training
from swamp.training.retrain import norm_change


@dataclass(frozen=True, eq=False)
class CycleSpec:
    """How one cycle begins."""

    start: Ticket
    mask: Mask
    training: Training
    first: int = 0
    """Step of the schedule at which the particles start."""
    notes: tuple[str, ...] = ()
    earlier: Cost = field(default_factory=Cost)
    """Cost of the cycles that this one is made from."""
    scoring_flops: float = 0.0
    """Floating-point operations of finding the mask."""
    trained_ticket: bool = False
    """Whether this run trained the ticket: the cost of the cycle includes it."""


def first_spec(setup: Setup, index: int, ticket: Ticket) -> CycleSpec:
    """The dense cycle, or a cycle of a method that needs no other cycle."""
    if not setup.plan.spec.independent:
        return CycleSpec(ticket, setup.dense, setup.training_of(index), setup.first_step(index), trained_ticket=True)
    training = setup.training_of(index)
    if setup.plan.spec.masks == "dynamic" and setup.plan.spec.grow in ("nothing", "all"):
        return CycleSpec(ticket, setup.dense, training)
    nnz = setup.schedule.nnz(index, setup.dense.prunable)
    pruned = setup.pruner.prune(setup.dense, ticket.weights, nnz, setup.seed.at("score", index))
    return CycleSpec(ticket, pruned.mask, training, notes=pruned.notes, scoring_flops=pruned.flops)


def prune_mean(setup: Setup, index: int, previous: Cycle) -> Pruned:
    """The mask of cycle `index`: of the active weights of the mean of `previous`, those with the largest scores."""
    nnz = setup.schedule.nnz(index, setup.dense.prunable)
    return setup.pruner.prune(previous.mask, previous.weights, nnz, setup.seed.at("score", index))


def rewound(setup: Setup, index: int, ticket: Ticket, previous: Cycle, pruned: Pruned) -> CycleSpec:
    """The cycle after `previous` begins at the weights of the ticket."""
    training, first = setup.training_of(index), setup.first_step(index)
    return CycleSpec(ticket, pruned.mask, training, first, pruned.notes, previous.total, pruned.flops)


def carried_on(setup: Setup, index: int, ticket: Ticket, previous: Cycle, pruned: Pruned) -> CycleSpec:
    """The cycle after `previous` begins at the weights of `previous`."""
    start = Ticket(previous.weights, 0, _carried_state(setup, ticket, previous))
    training, first = _retrained(setup, index, previous, pruned.mask)
    return CycleSpec(start, pruned.mask, training, first, pruned.notes, previous.total, pruned.flops)


def _carried_state(setup: Setup, ticket: Ticket, previous: Cycle) -> Mapping[str, Any]:
    """Extra state for particles that continue from `previous`: the state of its first particle."""
    if previous.state or not ticket.state:
        return previous.state
    index = previous.particles[0].index
    particle = setup.store.particle(previous.index, index)
    if particle is None:
        raise SwampError(
            f"the extra state of particle {index} of cycle {previous.index} is not kept, and {setup.plan.method} goes "
            'on from it. Keep particles (keep_checkpoints="particles"), or take a method that rewinds to the ticket.'
        )
    return particle.state


def _retrained(setup: Setup, index: int, previous: Cycle, mask: Mask) -> tuple[Training, int]:
    """How carried weights train on the smaller `mask`, and the step at which this starts."""
    whole, removed = (
        sum(float(previous.weights[name][chosen].abs().double().square().sum()) for name, chosen in part.items()) ** 0.5
        for part in (previous.mask, {name: ~active for name, active in mask.items()})
    )
    change = norm_change(whole, removed, 1 - mask.nnz / previous.mask.nnz)
    training, epoch = setup.retraining_of(index, change)
    return training, epoch * setup.per_epoch
