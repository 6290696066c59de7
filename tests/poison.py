"""Numbers that are not finite, planted in one batch of one particle, for every backend alike and for resumes too."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from swamp.training import Seed, Task


@dataclass(frozen=True)
class Poison:
    """An augmentation that spoils the batches whose noise has these seeds."""

    numbers: frozenset[int]
    factor: float = torch.nan
    before: Any = None

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        number = generator.initial_seed()
        drawn = inputs if self.before is None else self.before(inputs, generator)
        return drawn * self.factor if number in self.numbers else drawn


def poisoned(task: Task, seeds: Iterable[Seed], epoch: int = 1, step: int = 1, factor: float = torch.nan) -> Task:
    """The task with a spoilt batch in the trainings with these seeds: step `step` of epoch `epoch`."""
    numbers = frozenset(seed.at("augment", epoch).number() + step for seed in seeds)
    train = task.train
    return replace(task, train=replace(train, augment=Poison(numbers, factor, train.augment)))


def loses_its_gradient(model: nn.Module, inputs: Tensor) -> Tensor:
    """A forward pass whose outputs stay finite where inputs are NaN, and whose gradient does not."""
    sound = (~inputs.isnan().any()).to(inputs.dtype)
    outputs = model(inputs.nan_to_num())
    # The root has no slope at 0: infinity times zero. At 1 its slope times zero is zero.
    return outputs + (((outputs - outputs.detach()) ** 2 + sound).sqrt() - sound)
