"""The batches of several trainings at once: one gather and one augmentation for all of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from swamp.training.augment import TwoSteps
from swamp.training.data import Batch, Data, TensorData, batch_to
from swamp.training.order import Seed, permutation


def shuffled_together(
    data: Data, batch_size: int, seeds: Sequence[Seed], epoch: int, first: int, device: torch.device
) -> Iterator[Batch]:
    """The batches that `data.shuffled` gives for each of the seeds, stacked: inputs and targets of (seeds, batch, ...).

    Raises RuntimeError where the batches of a step differ in shape.
    """
    if isinstance(data, TensorData) and isinstance(data.inputs, Tensor):
        yield from _gathered(data, batch_size, seeds, epoch, first)
        return
    for batches in zip(*(data.shuffled(batch_size, seed, epoch, first) for seed in seeds), strict=True):
        moved = [batch_to(batch, device) for batch in batches]
        yield _stacked([inputs for inputs, _ in moved]), torch.stack([targets for _, targets in moved])


def _gathered(data: TensorData, batch_size: int, seeds: Sequence[Seed], epoch: int, first: int) -> Iterator[Batch]:
    device = data.targets.device
    orders = torch.stack([permutation(seed, epoch, len(data)) for seed in seeds]).to(device)
    noise = torch.Generator(device)
    bases = [seed.at("augment", epoch).number() for seed in seeds]
    for step in range(first, data.steps(batch_size)):
        index = orders[:, step * batch_size : (step + 1) * batch_size]
        inputs, targets = data.gather(index.flatten())
        if data.augment is not None:
            generators = (noise.manual_seed(base + step) for base in bases)
            inputs = _augmented(data.augment, inputs, index.shape[1], generators)
        inputs = data.normalised(inputs)
        yield inputs.unflatten(0, index.shape), targets.unflatten(0, index.shape)


def _augmented(augment: Any, inputs: Tensor, size: int, generators: Iterator[torch.Generator]) -> Tensor:
    if not isinstance(augment, TwoSteps):
        parts = (inputs[start : start + size] for start in range(0, len(inputs), size))
        return torch.cat([augment(part, one) for part, one in zip(parts, generators, strict=True)])
    drawn = [augment.draw((size, *inputs.shape[1:]), one) for one in generators]
    return augment.apply(inputs, tuple(map(torch.cat, zip(*drawn, strict=True))))


def _stacked(parts: list[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        names = cast("Mapping[str, Tensor]", parts[0])
        return {name: torch.stack([part[name] for part in parts]) for name in names}
    return torch.stack(parts)
