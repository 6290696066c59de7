"""The batches of several trainings at once: one gather and one augmentation for all of them."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from swamp.training.augment import TwoSteps
from swamp.training.data import Batch, Data, TensorData, batch_to
from swamp.training.order import Seed, permutation


class Rows(NamedTuple):
    """Inputs that nothing but a gather is left to be done to, which a compiled step does faster: see `gathered`."""

    source: Tensor
    """(n, ...)."""
    places: Tensor
    """(seeds, batch)."""


def gathered(inputs: Any) -> Any:
    """Inputs as the model takes them (seeds, batch, ...), where they are still `Rows`."""
    if not isinstance(inputs, Rows):
        return inputs
    source, places = inputs
    return source.index_select(0, places.view(-1)).view(*places.shape, *source.shape[1:])


def shuffled_together(
    data: Data, batch_size: int, seeds: Sequence[Seed], epoch: int, first: int, device: torch.device
) -> Iterator[Batch]:
    """The batches that `data.shuffled` gives for each of the seeds, stacked: inputs and targets of (seeds, batch, ...).

    Inputs may be `Rows`. Raises RuntimeError where the batches of a step differ in shape.
    """
    if isinstance(data, TensorData) and isinstance(data.inputs, Tensor):
        yield from _gathered(data, batch_size, seeds, epoch, first)
        return
    for batches in zip(*(data.shuffled(batch_size, seed, epoch, first) for seed in seeds), strict=True):
        moved = [batch_to(batch, device) for batch in batches]
        yield _stacked([inputs for inputs, _ in moved]), torch.stack([targets for _, targets in moved])


def _gathered(data: TensorData, batch_size: int, seeds: Sequence[Seed], epoch: int, first: int) -> Iterator[Batch]:
    assert isinstance(data.inputs, Tensor)
    device, steps = data.targets.device, data.steps(batch_size)
    size = min(batch_size, len(data))
    orders = torch.stack([permutation(seed, epoch, len(data)) for seed in seeds])
    # All of an epoch at once, so that nothing but the gather is left for the step itself.
    index = orders[:, : steps * size].reshape(len(seeds), steps, size).transpose(0, 1).contiguous().to(device)
    targets = data.targets.index_select(0, index.view(-1)).view(*index.shape, *data.targets.shape[1:])
    if data.augment is None and data.normalise is None:
        yield from zip(map(partial(Rows, data.inputs), index[first:].unbind()), targets[first:].unbind(), strict=True)
        return
    noise = torch.Generator(device)
    bases = [seed.at("augment", epoch).number() for seed in seeds]
    for step in range(first, steps):
        inputs = data.inputs.index_select(0, index[step].view(-1))
        if data.augment is not None:
            generators = (noise.manual_seed(base + step) for base in bases)
            inputs = _augmented(data.augment, inputs, size, generators)
        yield data.normalised(inputs).unflatten(0, (len(seeds), size)), targets[step]


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
