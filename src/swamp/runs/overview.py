"""What a run does, before it starts: data, network, method, and the number of steps."""

from dataclasses import dataclass

from torch import nn

from swamp.algorithms.registry import method_named
from swamp.datasets.problem import Problem
from swamp.masks import Mask
from swamp.runs.config import RunConfig


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


def overview(config: RunConfig, problem: Problem, model: nn.Module) -> Overview:
    """Describe the run of `config` with this problem and initial network."""
    plan, train, validation = config.plan, problem.task.train, problem.task.validation
    schedule = plan.schedule()
    prunable = Mask.ones(model, plan.scope).prunable
    parameters = sum(parameter.numel() for parameter in model.parameters())
    used = f"{len(train):,} of {problem.available:,}" if problem.available else f"{len(train):,}"
    held_out = f" ({len(validation):,} more for validation)" if validation else ""
    steps = _steps(config, train.steps(config.training.batch_size))
    counts = sorted(set(schedule.particles))
    particles = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    ensemble = f", {plan.most_particles} members" if method_named(plan.method).ensemble else ""
    lines = (
        f"task {config.task}: {used} training examples{held_out}, {len(problem.task.test):,} for test",
        f"model {config.model}: {parameters:,} parameters, {100 * prunable / parameters:.1f} % prunable",
        f"method {plan.method}: {len(schedule)} cycles to {100 * (1 - schedule.densities[-1]):.2f} % sparsity, "
        f"{particles} particles per cycle{ensemble}",
        f"training: {config.training.optimizer}, lr {config.training.lr:g}, {_epochs(config)} epochs per particle, "
        f"{steps:,} steps in all",
    )
    return Overview("\n".join(lines), len(schedule), steps)


def _epochs(config: RunConfig) -> int:
    return method_named(config.plan.method).training(config.training, config.plan.most_particles).epochs


def _steps(config: RunConfig, per_epoch: int) -> int:
    """Steps of all trainings: `per_epoch` steps an epoch."""
    plan, method = config.plan, method_named(config.plan.method)
    schedule = plan.schedule()
    # A cyclic method repeats the schedule as often as an iterative run has cycles to that density.
    trainings = sum(
        count * (plan.trainings_to(density) if method.cyclic else 1)
        for density, count in zip(schedule.densities, schedule.particles, strict=True)
    )
    ticket = round(plan.ticket_epochs * per_epoch)
    return (trainings * _epochs(config) * per_epoch + ticket) * (plan.most_particles if method.ensemble else 1)
