"""What a run does, before it starts: data, network, method, and the number of steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from swamp.datasets.environments import Agent
from swamp.masks import Mask
from swamp.runs.config import RunConfig
from swamp.training import Task


@dataclass(frozen=True)
class Overview:
    """A run in numbers.

    Args:
        text: A few lines for a person.
        cycle_steps: Optimizer steps of each cycle's trainings; those of stopped or repeated trainings are not counted.
            Empty: unknown.
        ticket_steps: Optimizer steps of the ticket's training.
        evaluation: Estimated cost of the evaluation of one cycle, in optimizer steps.
        particle_steps: Optimizer steps of one particle, by cycle.
    """

    text: str = ""
    cycle_steps: tuple[int, ...] = ()
    ticket_steps: int = 0
    evaluation: float = 0.0
    particle_steps: tuple[int, ...] = ()

    def axis(self, cycle: int | None, step: int) -> int:
        """Step `step` of a particle of a cycle (None: of the ticket) on one axis for the whole run."""
        return step if cycle is None else self.ticket_steps + sum(self.particle_steps[:cycle]) + step


def overview(
    config: RunConfig, task: Task, model: nn.Module, available: int = 0, agent: Agent | None = None
) -> Overview:
    """Describe the run of `config` with this task and initial network. available, agent: see `Problem`."""
    plan, train, validation = config.plan, task.train, task.validation
    schedule = plan.schedule()
    prunable = Mask.ones(model, plan.scope).prunable
    parameters = sum(parameter.numel() for parameter in model.parameters())
    used = f"{len(train):,} of {available:,}" if available else f"{len(train):,}"
    held_out = f" ({len(validation):,} more for validation)" if validation else ""
    epochs = [plan.particle_epochs(cycle, config.training.epochs) for cycle in range(len(schedule))]
    batch = config.training.batch_size
    per_epoch = train.steps(batch)
    cycle_steps, ticket_steps = _steps(config, per_epoch)
    particle_steps = tuple(each * per_epoch for each in epochs)
    test = "" if task.test is None else f", {len(task.test):,} for test"
    ensemble = f", {plan.most_particles} members" if plan.spec.ensemble else ""
    chosen = ", as many as pay" if any(map(plan.adaptive, range(len(schedule)))) else ""
    fewest = [plan.first_wave(cycle) for cycle in range(len(schedule))]
    number = _range([*fewest, *schedule.particles])
    data = f"{used} training examples{held_out}{test}"
    if agent is not None:
        data = f"{agent.algorithm} on {agent.env}, {len(train):,} steps of the environments per epoch"
    lines = (
        f"task {config.task}: {data}",
        f"model {config.model}: {parameters:,} parameters, {100 * prunable / parameters:.1f} % prunable",
        f"method {plan.method}: {len(schedule)} cycles to {100 * (1 - schedule.densities[-1]):.2f} % sparsity, "
        f"{number} particle{'s' if number != '1' else ''} per cycle{ensemble}{chosen}",
        f"training: {config.training.optimizer}, lr {config.training.lr:g}, {_range(epochs)} "
        f"epoch{'s' if max(epochs) > 1 else ''} per particle, "
        f"{'at least ' if chosen else ''}{sum(cycle_steps) + ticket_steps:,} steps in all",
    )
    # A forward pass costs a third of a training step with as many examples.
    evaluation = _evaluated(config, task) / (3 * batch)
    return Overview("\n".join(lines), cycle_steps, ticket_steps, evaluation, particle_steps)


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low} to {high}" if low < high else str(low)


def _steps(config: RunConfig, per_epoch: int) -> tuple[tuple[int, ...], int]:
    """Optimizer steps of each cycle, and of the ticket. per_epoch: steps of an epoch."""
    plan = config.plan
    runs = plan.most_particles if plan.spec.ensemble else 1
    trained: list[int] = []
    for cycle in range(len(plan.schedule())):
        count = plan.first_wave(cycle)
        whole = plan.particle_epochs(cycle, config.training.epochs) * per_epoch
        apart = plan.steps_apart(cycle, config.training.epochs, whole)
        trained.append(runs * (whole + (count - 1) * apart))
    return tuple(trained), runs * plan.ticket_steps(per_epoch)


def _evaluated(config: RunConfig, task: Task) -> int:
    """Examples that the evaluation of a cycle reads, roughly: those of all its models and points of barriers."""
    plan, splits = config.plan, task.splits
    held_out = len(splits["validation"] if "validation" in splits else splits["train"])
    particles = plan.most_particles
    if particles == 1:
        points, models = 0, 1
    else:
        points, models = plan.barrier_points, particles + 1
    each = sum(
        min(len(data), plan.evaluation_examples) if name == "train" else len(data) for name, data in splits.items()
    )
    return models * each + points * held_out
