"""Equal cost of all trials: the number of epochs follows from the other options."""

from dataclasses import replace

from swamp.errors import SwampError
from swamp.runs.budget import training_cost
from swamp.runs.config import RunConfig

COST_TOLERANCE = 0.1
"""Largest deviation of a trial's cost, as a fraction: epochs are whole numbers."""


def at_equal_cost(config: RunConfig, cost: float) -> RunConfig:
    """The configuration with the number of epochs at which its cost is nearest to `cost`.

    Raises:
        SwampError: It would deviate by more than a tenth, as epochs are whole numbers; or epochs are impossible.
    """

    def cost_of(epochs: int) -> float:
        return training_cost(config.plan, config.training, epochs)

    if "auto" in config.plan.particles:
        raise SwampError('all trials cost the same, and particles="auto" costs what it finds. Give a number.')
    one, two = cost_of(1), cost_of(2)
    epochs = max(1, round((cost - (2 * one - two)) / (two - one)))
    deviation = cost_of(epochs) / cost - 1
    if abs(deviation) > COST_TOLERANCE:
        raise SwampError(
            f"with {epochs} epoch{'s' if epochs > 1 else ''}, the nearest whole number, it would cost "
            f"{100 * abs(deviation):.0f} % {'more' if deviation > 0 else 'less'} than the other trials. More epochs in "
            "the recipe (--epochs) divide more finely."
        )
    return replace(config, training=replace(config.training, epochs=epochs))
