"""Sources of batches. For every source the order is a pure function of the seed and the epoch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol, Self, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate  # pyright: ignore[reportUnknownVariableType]

from swamp.batches import Batch, as_batch, first_of, map_tensors, others_of, tensors_of
from swamp.errors import SwampError, data_worker_died
from swamp.training.augment import Augment
from swamp.training.rng import Seed, draws_global, isolated, permutation
from swamp.training.streams import StreamData


@runtime_checkable
class Data(Protocol):
    """Examples: shuffled by a seed for training, in fixed order for evaluation.

    A class that inherits from it gets the methods that have a body here.
    """

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch of `shuffled`: without an incomplete last one, unless it is the only one."""
        return max(1, len(self) // batch_size)

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, augmented, without the first `first` batches."""
        ...

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All examples once, in fixed order, without augmentation."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same data on `device`. Data that is not in memory stays as it is: each batch is moved when it is used."""
        del device
        return self


_FEW = 8
"""Examples with which an augmentation is tried."""


@dataclass(frozen=True)
class TensorData(Data):
    """Examples in memory; each batch is gathered, augmented and normalised as a whole.

    In training an incomplete last batch is dropped, unless it is the only one: every step has the same weight.

    Args:
        inputs: Tensor (n, ...), or such tensors in tuples, lists, dicts or dataclasses; may be uint8 if `normalise`
            converts it.
        targets: Tensor (n, ...).
        augment: (inputs, generator) -> inputs; applied in training only, before `normalise`.
        normalise: Stored inputs of a batch -> inputs of the model (None: unchanged).
        loader_batch_size: Batch size of the DataLoader that the examples are from; it is not used.

    Raises:
        SwampError: There are no examples, or the lengths differ.

    Examples:
        >>> import torch
        >>> data = TensorData(torch.arange(10.0)[:, None], torch.arange(10))
        >>> len(data), data.steps(batch_size=4)
        (10, 2)
        >>> [targets.tolist() for _, targets in data.in_order(4)]
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    """

    inputs: Any
    targets: Tensor
    augment: Augment | None = None
    normalise: Callable[[Any], Any] | None = None
    loader_batch_size: int | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = _tensors(self.inputs)
        if not len(self.targets):
            raise SwampError("the data set is empty: 0 examples were given, at least one is needed.")
        if any(len(part) != len(self.targets) for part in parts):
            counts = " and ".join(str(len(part)) for part in parts)
            raise SwampError(
                f"the inputs have {counts} examples, the targets {len(self.targets)}; give as many of each."
            )

    def __len__(self) -> int:
        return len(self.targets)

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, augmented, without the first `first` batches."""
        device = self.targets.device
        order = permutation(seed, epoch, len(self)).to(device)
        noise = torch.Generator(device)
        base = seed.at("augment", epoch).number()
        for step in range(first, self.steps(batch_size)):
            inputs, targets = self.gather(order[step * batch_size : (step + 1) * batch_size])
            if self.augment is not None:
                # Seeded at each step: a run that is resumed within an epoch draws the same numbers.
                with _isolated_if(self.augment_draws, seed.at("augment", epoch, step), device):
                    inputs = self.augment(inputs, noise.manual_seed(base + step))
            yield self.normalised(inputs), targets

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All examples once, in fixed order, without augmentation."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield self.normalised(map_tensors(lambda tensor, part=part: tensor[part], self.inputs)), self.targets[part]

    def to(self, device: torch.device) -> "TensorData":
        """The same data on `device`."""
        if self.targets.device == device:
            return self
        moved = map_tensors(lambda tensor: tensor.to(device), self.inputs)
        return replace(self, inputs=moved, targets=self.targets.to(device))

    def subset(self, index: Tensor) -> "TensorData":
        """The examples at `index` (int64)."""
        inputs, targets = self.gather(index.to(self.targets.device))
        return replace(self, inputs=inputs, targets=targets)

    @cached_property
    def augment_draws(self) -> bool:
        """Whether `augment` draws from the global generators, not only from the one that it is given."""
        if self.augment is None:
            return False
        device = self.targets.device
        inputs, _ = self.gather(torch.arange(min(_FEW, len(self)), device=device))
        return draws_global(partial(self.augment, inputs, torch.Generator(device)), device)

    def plain(self) -> "TensorData":
        """The same examples without augmentation."""
        return replace(self, augment=None)

    def gather(self, index: Tensor) -> tuple[Any, Tensor]:
        """Stored inputs and targets of the examples at `index` (int64)."""
        gathered = map_tensors(lambda tensor: tensor.index_select(0, index), self.inputs)
        return gathered, self.targets.index_select(0, index)

    def normalised(self, inputs: Any) -> Any:
        """Stored inputs of a batch, converted to inputs of the model."""
        return inputs if self.normalise is None else self.normalise(inputs)


@dataclass(frozen=True)
class DatasetData(Data):
    """Examples of a torch Dataset, read by a DataLoader: for data that does not fit in memory.

    Transforms and `collate` may draw from the global generators of torch, NumPy and Python. These are seeded for each
    batch, so the batches do not depend on the number of workers, or on a resume within an epoch.

    Args:
        dataset: A map-style dataset: `__len__` and `__getitem__`.
        collate: Examples -> batch (default: torch's default_collate).
        workers: Processes that read examples (0: read in this process).
        augment: (inputs, generator) -> inputs of a batch; applied in training only, before `normalise`.
        normalise: Inputs of a batch -> inputs of the model (None: unchanged).
        loader_batch_size: See `TensorData`.

    Raises:
        SwampError: There are no examples.

    Examples:
        >>> import torch
        >>> data = DatasetData(torch.utils.data.TensorDataset(torch.randn(5, 3), torch.arange(5)))
        >>> [targets.tolist() for _, targets in data.in_order(2)]
        [[0, 1], [2, 3], [4]]
    """

    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any] = default_collate  # pyright: ignore[reportUnknownVariableType]
    workers: int = 0
    augment: Augment | None = None
    normalise: Callable[[Any], Any] | None = None
    loader_batch_size: int | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not len(self):
            raise SwampError("the data set is empty: 0 examples were given, at least one is needed.")

    def __len__(self) -> int:
        return len(cast(Any, self.dataset))

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, augmented, without the first `first` batches."""
        order = permutation(seed, epoch, len(self))
        steps = range(first, self.steps(batch_size))
        chosen = [_numbers(order[step * batch_size : (step + 1) * batch_size]) for step in steps]
        noise = torch.Generator()
        base = seed.at("augment", epoch).number()
        batches = self._load(chosen, seed.at("loader", epoch), first)
        for step, (inputs, targets) in enumerate(batches, first):
            if self.augment is not None:
                with _isolated_if(self.augment_draws, seed.at("augment", epoch, step), noise.device):
                    inputs = self.augment(inputs, noise.manual_seed(base + step))
            yield self._normalised(inputs), targets

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All examples once, in fixed order, without `augment`."""
        count = len(self)
        chosen = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
        for inputs, targets in self._load(chosen, Seed(0).at("evaluation"), 0):
            yield self._normalised(inputs), targets

    @cached_property
    def augment_draws(self) -> bool:
        """See `TensorData.augment_draws`."""
        if self.augment is None:
            return False
        few = [list(range(min(_FEW, len(self))))]
        inputs, _ = next(replace(self, workers=0)._load(few, Seed(0).at("probe"), 0))
        return draws_global(partial(self.augment, inputs, torch.Generator()), torch.device("cpu"))

    def subset(self, index: Tensor) -> "DatasetData":
        """The examples at `index` (int64)."""
        return replace(self, dataset=Subset(self.dataset, _numbers(index)))

    def _normalised(self, inputs: Any) -> Any:
        return inputs if self.normalise is None else self.normalise(inputs)

    def _load(self, chosen: list[list[int]], seed: Seed, first: int) -> Iterator[Batch]:
        loader = DataLoader(
            _Batches(self.dataset, self.collate),
            batch_size=None,
            sampler=cast(Any, [(seed.at(step), index) for step, index in enumerate(chosen, first)]),
            collate_fn=_itself,
            num_workers=self.workers,
            # By default the loader draws the seeds of its workers from the global generator.
            generator=seed.generator(),
        )
        try:
            for batch in loader:
                if isinstance(batch, SwampError):
                    raise batch
                yield batch
        except (ConnectionError, EOFError) as error:
            # Raised when a worker process is killed while it sends a batch.
            raise data_worker_died(str(error) or type(error).__name__) from error


def _isolated_if(draws: bool, seed: Seed, device: torch.device) -> AbstractContextManager[None]:
    return isolated(seed, device) if draws else nullcontext()


class _Batches(Dataset[Any]):
    """A dataset whose items are batches, each read with its own seed."""

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, chosen: tuple[Seed, list[int]]) -> Any:
        seed, index = chosen
        fetch_batch = getattr(self.dataset, "__getitems__", None)
        try:
            with isolated(seed):
                return as_batch(self.collate(fetch_batch(index) if fetch_batch else [self.dataset[i] for i in index]))
        except SwampError as error:
            # Returned, and raised in the main process: torch would add the traceback of the worker to the message.
            return error


def _itself(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class BatchList(Data):
    """Batches from the user: their order is shuffled, their content is not changed."""

    batches: Sequence[Any]

    def __post_init__(self) -> None:
        if not len(self.batches):
            raise SwampError("the data set is empty: 0 batches were given, at least one is needed.")
        for number, batch in enumerate(self.batches):
            if not len(as_batch(batch)[1]):
                raise SwampError(f"batch {number} of {len(self.batches)} has no examples. Leave it out.")

    def __len__(self) -> int:
        return sum(len(as_batch(batch)[1]) for batch in self.batches)

    def steps(self, batch_size: int) -> int:
        """Number of batches; `batch_size` is ignored."""
        del batch_size
        return len(self.batches)

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        """All batches in the order of the epoch, without the first `first` batches."""
        del batch_size
        for index in _numbers(permutation(seed, epoch, len(self.batches))[first:]):
            yield as_batch(self.batches[index])

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All batches in their original order."""
        del batch_size
        return (as_batch(batch) for batch in self.batches)


def sampled(data: Data, examples: int | None) -> Data:
    """At most `examples` examples of `data`, in order: a random subset, the same in every call and for every method.

    The first examples of data sorted by class would show some classes only. Data without `subset` and a list of batches
    give whole batches; a stream gives its first ones, to the one that makes up `examples`.

    Args:
        data: Any data.
        examples: Number of examples (None: all).
    """
    if examples is not None and isinstance(data, StreamData):
        return replace(data, examples=examples)
    if examples is None or examples >= len(data):
        return data
    seed = Seed(0).at("sample")
    if isinstance(data, BatchList):
        chosen: list[int] = []
        seen = 0
        for number in _numbers(permutation(seed, 0, len(data.batches))):
            if seen >= examples:
                break
            chosen.append(number)
            seen += len(as_batch(data.batches[number])[1])
        return BatchList([data.batches[number] for number in sorted(chosen)])
    subset = getattr(data, "subset", None)
    if not callable(subset):
        return data
    return cast(Data, subset(permutation(seed, 0, len(data))[:examples].sort().values))


def mixed_batches(data: Data, batch_size: int, examples: int | None = None) -> Iterator[Batch]:
    """The examples of `sampled` in a fixed random order, so that each batch shows all of data sorted by class.

    A list of batches and a stream keep the content of their batches; a stream ends with the batch that makes up
    `examples`. There is no augmentation.
    """
    order = permutation(Seed(0).at("sample"), 0, len(data))[:examples]
    if type(data) is TensorData:
        for start in range(0, len(order), batch_size):
            inputs, targets = data.gather(order[start : start + batch_size].to(data.targets.device))
            yield data.normalised(inputs), targets
        return
    subset = None if isinstance(data, BatchList) else getattr(data, "subset", None)
    mixed = cast(Data, subset(order)) if callable(subset) else sampled(data, examples)
    yield from first_of(mixed.in_order(batch_size), examples)


def _tensors(inputs: Any) -> list[Tensor]:
    parts, others = tensors_of(inputs), others_of(inputs)
    if others or not parts:
        what = next(iter(others.values()), inputs)
        raise SwampError(
            f"inputs must be a tensor, or tensors in tuples, lists or dicts, got {type(cast(object, what)).__name__}."
        )
    return list(parts.values())


def _numbers(index: Tensor) -> list[int]:
    return index.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
