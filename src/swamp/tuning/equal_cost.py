"""Equal cost of all trials: the number of epochs follows from the other options."""

from dataclasses import replace

from swamp.algorithms.unused import unused_options
from swamp.errors import SwampError
from swamp.runs.config import RunConfig
from swamp.runs.study_queue import total_epochs

COST_TOLERANCE = 0.1
"""Largest deviation of a trial's cost, as a fraction: epochs are whole numbers."""


def training_cost(config: RunConfig, epochs: int | None = None) -> float:
    """Passes over the training data of a whole run: the epochs of all its particles, and of the ticket.

    Each pass is one forward and one backward computation; an epoch of SAM or ASAM has two. Unlike FLOPs without zeros,
    which depend on the masks, this is known before a run, and is what a machine with dense kernels computes.

    epochs: instead of those of `config`.
    """
    plan, training = config.plan, config.training
    passes = plan.spec.training(training).passes
    ticket = 0.0 if "ticket_epochs" in unused_options(plan, training) else plan.ticket_epochs
    members = plan.most_particles if plan.spec.ensemble else 1
    return passes * total_epochs(plan, training.epochs if epochs is None else epochs) + ticket * members


def at_equal_cost(config: RunConfig, cost: float) -> RunConfig:
    """The configuration with the number of epochs at which its cost is nearest to `cost`.

    Raises:
        SwampError: It would deviate by more than a tenth, as epochs are whole numbers; or epochs are impossible.
    """
    one, two = training_cost(config, 1), training_cost(config, 2)
    epochs = max(1, round((cost - (2 * one - two)) / (two - one)))
    deviation = training_cost(config, epochs) / cost - 1
    if abs(deviation) > COST_TOLERANCE:
        raise SwampError(
            f"with {epochs} epoch{'s' if epochs > 1 else ''}, the nearest whole number, it would cost "
            f"{100 * abs(deviation):.0f} % {'more' if deviation > 0 else 'less'} than the other trials. More epochs in "
            "the recipe (--epochs) divide more finely."
        )
    return replace(config, training=replace(config.training, epochs=epochs))
