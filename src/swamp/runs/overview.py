"""What a run does, before it starts: data, network, method, and the number of steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from swamp.algorithms.registry import method_named
from swamp.masks import Mask
from swamp.runs.config import RunConfig
from swamp.training import Task


@dataclass(frozen=True)
class Overview:
    """A run in numbers.

    Args:
        text: A few lines for a person.
        cycles: Cycles of the run.
        steps: Optimizer steps of all trainings together, the ticket's included; those of stopped or repeated
            trainings are not.
    """

    text: str
    cycles: int
    steps: int


def overview(config: RunConfig, task: Task, model: nn.Module, available: int = 0) -> Overview:
    """Describe the run of `config` with this task and initial network. available: see `Problem`."""
    plan, train, validation = config.plan, task.train, task.validation
    schedule = plan.schedule()
    prunable = Mask.ones(model, plan.scope).prunable
    parameters = sum(parameter.numel() for parameter in model.parameters())
    used = f"{len(train):,} of {available:,}" if available else f"{len(train):,}"
    held_out = f" ({len(validation):,} more for validation)" if validation else ""
    epochs = [config.training.epochs * plan.times_epochs(cycle) for cycle in range(len(schedule))]
    steps = _steps(config, epochs, train.steps(config.training.batch_size))
    test = "" if task.test is None else f", {len(task.test):,} for test"
    ensemble = f", {plan.most_particles} members" if method_named(plan.method).ensemble else ""
    lines = (
        f"task {config.task}: {used} training examples{held_out}{test}",
        f"model {config.model}: {parameters:,} parameters, {100 * prunable / parameters:.1f} % prunable",
        f"method {plan.method}: {len(schedule)} cycles to {100 * (1 - schedule.densities[-1]):.2f} % sparsity, "
        f"{_range(schedule.particles)} particles per cycle{ensemble}",
        f"training: {config.training.optimizer}, lr {config.training.lr:g}, {_range(epochs)} epochs per particle, "
        f"{steps:,} steps in all",
    )
    return Overview("\n".join(lines), len(schedule), steps)


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low} to {high}" if low < high else str(low)


def _steps(config: RunConfig, epochs: Sequence[int], per_epoch: int) -> int:
    """Optimizer steps of all trainings. epochs: epochs of a particle, by cycle; per_epoch: steps in an epoch."""
    plan = config.plan
    trained = sum(count * each for count, each in zip(plan.schedule().particles, epochs, strict=True))
    ticket = round(plan.ticket_epochs * per_epoch)
    return (trained * per_epoch + ticket) * (plan.most_particles if method_named(plan.method).ensemble else 1)
