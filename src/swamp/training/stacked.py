"""Stacked batches of several trainings: one gather and one augmentation for all."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swamp.batches import Batch, batch_to, stack_inputs
from swamp.training.augment import DrawThenApply
from swamp.training.data import Data, TensorData
from swamp.training.rng import Seed, permutation


class Rows(NamedTuple):
    """Inputs before the gather, which is faster inside a compiled step: see `gather_rows`."""

    source: Tensor
    """All inputs, (n, ...)."""
    places: Tensor
    """Indices of the examples, (seeds, batch) int64."""


def gather_rows(inputs: Any) -> Any:
    """Gather `Rows` to inputs (seeds, batch, ...); other inputs are returned unchanged."""
    if not isinstance(inputs, Rows):
        return inputs
    source, places = inputs
    return source.index_select(0, places.view(-1)).view(*places.shape, *source.shape[1:])


def stacked_batches(
    data: Data, batch_size: int, seeds: Sequence[Seed], epoch: int, first: int, device: torch.device
) -> Iterator[Batch]:
    """The batches of `data.shuffled` for each seed, stacked: inputs and targets (seeds, batch, ...).

    Inputs may be `Rows`. Raises RuntimeError if the batches of a step differ in shape.
    """
    # A subclass may override `shuffled`, which this does not call.
    if type(data) is TensorData and isinstance(data.inputs, Tensor):
        steps, size = data.steps(batch_size), min(batch_size, len(data))
        # The indices of a whole epoch at once: each step then needs one gather.
        orders = torch.stack([permutation(seed, epoch, len(data)) for seed in seeds])
        index = orders[:, : steps * size].reshape(len(seeds), steps, size).transpose(0, 1).contiguous()
        augment_seeds = [seed.at("augment", epoch).number() for seed in seeds]
        yield from _gathered(data, index.to(data.targets.device), augment_seeds, first)
        return
    for batches in zip(*(data.shuffled(batch_size, seed, epoch, first) for seed in seeds), strict=True):
        moved = [batch_to(batch, device) for batch in batches]
        yield stack_inputs([inputs for inputs, _ in moved]), torch.stack([targets for _, targets in moved])


def _gathered(data: TensorData, index: Tensor, augment_seeds: Sequence[int], first: int) -> Iterator[Batch]:
    """Batches of an epoch without the first `first` batches; index: (steps, seeds, batch)."""
    assert isinstance(data.inputs, Tensor)
    targets = data.targets.index_select(0, index.view(-1)).view(*index.shape, *data.targets.shape[1:])
    if data.augment is None and data.normalise is None:
        yield from zip(map(partial(Rows, data.inputs), index[first:].unbind()), targets[first:].unbind(), strict=True)
        return
    generator = torch.Generator(data.targets.device)
    steps, seeds, size = index.shape
    for step in range(first, steps):
        inputs = data.inputs.index_select(0, index[step].view(-1))
        if data.augment is not None:
            generators = (generator.manual_seed(seed + step) for seed in augment_seeds)
            inputs = _augmented(data.augment, inputs, size, generators)
        yield data.normalised(inputs).unflatten(0, (seeds, size)), targets[step]


def _augmented(augment: Any, inputs: Tensor, size: int, generators: Iterator[torch.Generator]) -> Tensor:
    if not isinstance(augment, DrawThenApply):
        parts = (inputs[start : start + size] for start in range(0, len(inputs), size))
        return torch.cat([augment(part, one) for part, one in zip(parts, generators, strict=True)])
    drawn = [augment.draw((size, *inputs.shape[1:]), one) for one in generators]
    return augment.apply(inputs, tuple(map(torch.cat, zip(*drawn, strict=True))))
