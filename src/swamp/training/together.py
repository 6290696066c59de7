"""The batches of several trainings at once: one gather and one augmentation for all of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.training.augment import TwoSteps
from swamp.training.data import Batch, Data, TensorData, batch_to
from swamp.training.order import Seed, permutation


@dataclass(frozen=True)
class BySeed:
    """The training examples of several runs, which hold out others each: a seed's batches are of those of its root.

    parts: root of the seeds of a run -> its examples, as many in each. Augmentation is alike in all.
    """

    parts: Mapping[int, Data]
    joined: TensorData | None = None
    """All parts, one after the other, where they are tensors."""

    @classmethod
    def of(cls, parts: Mapping[int, Data]) -> "BySeed":
        """Tensors are joined, and the parts are slices of what comes of it. Raises SwampError for unequal lengths."""
        lengths = {root: len(part) for root, part in parts.items()}
        if len({*lengths.values()}) != 1:
            raise SwampError(f"runs that are trained at once need as many training examples each, got {lengths}.")
        tensors = [part for part in parts.values() if isinstance(part, TensorData)]
        inputs = [part.inputs for part in tensors if isinstance(part.inputs, Tensor)]
        if len(inputs) < len(parts) or len({(x.dtype, x.shape) for x in inputs}) != 1:
            return cls(parts)
        return cls(parts)._joining(
            replace(tensors[0], inputs=torch.cat(inputs), targets=torch.cat([part.targets for part in tensors]))
        )

    def __len__(self) -> int:
        return len(self._first)

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch of `shuffled`."""
        return self._first.steps(batch_size)

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch of the run that the seed is of."""
        return self.parts[seed.root].shuffled(batch_size, seed, epoch, first)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """The examples of the first run: enough to see what a batch looks like."""
        return self._first.in_order(batch_size)

    def to(self, device: torch.device) -> "BySeed":
        """The same data on `device`."""
        if self.joined is not None:
            moved = self.joined.to(device)
            return self if moved is self.joined else self._joining(moved)
        return replace(self, parts={root: part.to(device) for root, part in self.parts.items()})

    @property
    def _first(self) -> Data:
        return next(iter(self.parts.values()))

    def _joining(self, joined: TensorData) -> "BySeed":
        assert isinstance(joined.inputs, Tensor)
        count = len(joined) // len(self.parts)
        parts: dict[int, Data] = {}
        for place, root in enumerate(self.parts):
            own = slice(place * count, (place + 1) * count)
            parts[root] = replace(joined, inputs=joined.inputs[own], targets=joined.targets[own])
        return BySeed(parts, joined)


def kinds(data: Data) -> list[Data]:
    """The data itself, or those that it is made of."""
    return [*data.parts.values()] if isinstance(data, BySeed) else [data]


def a_seed(data: Data) -> Seed:
    """One that `data` has batches of."""
    return Seed(next(iter(data.parts))) if isinstance(data, BySeed) else Seed(0)


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
    joined = data.joined if isinstance(data, BySeed) else data
    if isinstance(joined, TensorData) and isinstance(joined.inputs, Tensor):
        steps, size = data.steps(batch_size), min(batch_size, len(data))
        # All of an epoch at once, so that nothing but the gather is left for the step itself.
        orders = torch.stack([permutation(seed, epoch, len(data)) + _start(data, seed) for seed in seeds])
        index = orders[:, : steps * size].reshape(len(seeds), steps, size).transpose(0, 1).contiguous()
        bases = [seed.at("augment", epoch).number() for seed in seeds]
        yield from _gathered(joined, index.to(joined.targets.device), bases, first)
        return
    for batches in zip(*(data.shuffled(batch_size, seed, epoch, first) for seed in seeds), strict=True):
        moved = [batch_to(batch, device) for batch in batches]
        yield _stacked([inputs for inputs, _ in moved]), torch.stack([targets for _, targets in moved])


def _start(data: Data, seed: Seed) -> int:
    """Where the examples of a seed's run begin among those of all."""
    return [*data.parts].index(seed.root) * len(data) if isinstance(data, BySeed) else 0


def _gathered(data: TensorData, index: Tensor, bases: Sequence[int], first: int) -> Iterator[Batch]:
    """Batches of an epoch from number `first` on. index: (steps, seeds, batch); bases: seeds of the augmentation."""
    assert isinstance(data.inputs, Tensor)
    targets = data.targets.index_select(0, index.view(-1)).view(*index.shape, *data.targets.shape[1:])
    if data.augment is None and data.normalise is None:
        yield from zip(map(partial(Rows, data.inputs), index[first:].unbind()), targets[first:].unbind(), strict=True)
        return
    noise = torch.Generator(data.targets.device)
    steps, seeds, size = index.shape
    for step in range(first, steps):
        inputs = data.inputs.index_select(0, index[step].view(-1))
        if data.augment is not None:
            generators = (noise.manual_seed(base + step) for base in bases)
            inputs = _augmented(data.augment, inputs, size, generators)
        yield data.normalised(inputs).unflatten(0, (seeds, size)), targets[step]


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
