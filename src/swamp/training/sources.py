"""Conversion of tensors, DataLoaders, Datasets and iterables to Data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,  # pyright: ignore[reportUnknownVariableType]
)

from swamp.batches import Batch, as_batch, opaque, others_of, tensors_of
from swamp.errors import SwampError
from swamp.training.data import BatchList, Data, DatasetData, TensorData
from swamp.training.rng import Seed
from swamp.training.streams import StreamData


def as_data(source: Any, steps_per_epoch: int | None = None) -> Data:
    """Convert a source of examples with targets to `Data`.

    Args:
        source: Tensors (inputs, targets), or (inputs, more inputs, ..., targets); a DataLoader, of which the dataset,
            collate function and number of workers are used, but not the order and the batch size; a Dataset; an
            IterableDataset, alone or in a DataLoader; an iterable of batches, which is read into memory once; or
            `Data`, which is returned unchanged.
        steps_per_epoch: Batches in an epoch, for a stream.

    Returns:
        TensorData, DatasetData, StreamData or BatchList.

    Raises:
        SwampError: The source has another type, is empty, or is a DataLoader with its own sampler or `__iter__`.

    Examples:
        >>> import torch
        >>> data = as_data((torch.randn(6, 2), torch.arange(6)))
        >>> type(data).__name__, len(data)
        ('TensorData', 6)
    """
    if isinstance(source, Data):
        return source
    parts: Any = source
    if isinstance(source, tuple) and any(isinstance(part, np.ndarray) for part in parts):
        raise SwampError(
            "the data are arrays of NumPy: convert them, as in (torch.from_numpy(x), torch.from_numpy(y))."
        )
    if isinstance(source, tuple) and len(parts) >= 2 and isinstance(parts[-1], Tensor):
        return TensorData(parts[0] if len(parts) == 2 else parts[:-1], parts[-1])
    found = _from_torch(source, steps_per_epoch, as_batch)
    if found is not None:
        return found
    if _is_iterable_of_batches(source):
        return BatchList([as_batch(batch) for batch in parts])
    raise SwampError(
        f"cannot take batches from a {type(parts).__name__}. Give tensors (inputs, targets), a DataLoader, a Dataset, "
        "or an iterable of (inputs, targets) batches; Task.custom(train, loss, evaluate) takes data without targets."
    )


def as_opaque_data(source: Any, steps_per_epoch: int | None = None) -> Data:
    """Convert a source of batches of any form to `Data`, for a task that computes its loss from whole batches.

    Args:
        source: See `Task.custom`.
        steps_per_epoch: Batches in an epoch, for a stream.

    Raises:
        SwampError: The source has another type, is empty, or is a DataLoader with its own sampler or `__iter__`.
    """
    given: Any = source
    if isinstance(source, BatchList):
        return BatchList([opaque(as_batch(batch)) for batch in source.batches])
    if isinstance(source, StreamData):
        return replace(source, to_batch=_Collate(source.to_batch, opaque))
    if isinstance(source, Data):
        return _OwnPairs(source)
    found = _from_torch(source, steps_per_epoch, opaque)
    if found is not None:
        return found
    if not isinstance(source, list) and tensors_of(source) and not others_of(source):
        lengths = {place: len(tensor) for place, tensor in tensors_of(source).items() if tensor.dim()}
        if len(set(lengths.values())) != 1:
            raise SwampError(f"tensors of one data set need the same length, got {lengths}.")
        return TensorData(source, torch.empty(next(iter(lengths.values())), 0))
    if callable(given) and not hasattr(given, "__iter__"):
        return StreamData(given, steps_per_epoch, None, opaque)
    if steps_per_epoch is not None and not isinstance(source, list | tuple) and isinstance(source, Iterable):
        return StreamData(given, steps_per_epoch, None, opaque)
    if _is_iterable_of_batches(source):
        return BatchList([opaque(batch) for batch in cast(Any, source)])
    raise SwampError(
        f"cannot take batches from a {type(given).__name__}. Give a DataLoader, a Dataset, tensors, a "
        "list of batches, or a function of a seed that returns an iterator of batches."
    )


def _from_torch(source: Any, steps_per_epoch: int | None, to_batch: Callable[[Any], Batch]) -> Data | None:
    """Data of a DataLoader or Dataset; None for anything else."""
    collated = _Collate(_default_collate, to_batch)
    if isinstance(source, DataLoader):
        return _of_loader(cast("DataLoader[Any]", source), steps_per_epoch, to_batch)
    if isinstance(source, IterableDataset):
        return StreamData(source, steps_per_epoch, to_batch=to_batch)
    # The exact class, here and below: a subclass may override `__getitem__` and more, which short cuts do not call.
    if type(source) is TensorDataset:
        return _in_memory(source, to_batch)
    given: Any = source
    indexed = hasattr(given, "__getitem__") and hasattr(given, "__len__")
    if indexed and not isinstance(source, list | tuple | Mapping | str | bytes | Tensor | np.ndarray):
        return DatasetData(given, collated)
    return None


def _is_iterable_of_batches(source: Any) -> bool:
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return isinstance(source, Iterable) and (not indexed or isinstance(source, list | tuple))


_default_collate: Callable[[list[Any]], Any] = cast(Any, default_collate)


@dataclass(frozen=True)
class _Collate:
    """Examples -> (inputs, targets); a class, as worker processes receive it."""

    collate: Callable[[list[Any]], Any]
    to_batch: Callable[[Any], Batch]

    def __call__(self, examples: list[Any]) -> Batch:
        return self.to_batch(self.collate(examples))


def _of_loader(loader: "DataLoader[Any]", steps_per_epoch: int | None, to_batch: Callable[[Any], Batch]) -> Data:
    if isinstance(loader.dataset, IterableDataset):
        if steps_per_epoch is None and hasattr(loader.dataset, "__len__"):
            steps_per_epoch = len(loader)
        return StreamData(loader, steps_per_epoch, None, to_batch)
    sampler, batch_sampler = cast(Any, loader).sampler, cast(Any, loader).batch_sampler
    if cast(Any, type(loader)).__iter__ is not cast(Any, DataLoader).__iter__:
        raise SwampError(
            f"{type(loader).__name__} makes its batches in its own __iter__, and their order must be swamp's. Give a "
            "Dataset whose examples are as training needs them, or list(loader) for batches as they are."
        )
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(cast(Any, loader.dataset))
    )
    # Many scripts hold out validation data with a SubsetRandomSampler: ignoring it would train on that data.
    if not whole or loader.batch_size is None:
        raise SwampError(
            f"this DataLoader chooses its examples itself (sampler {type(sampler).__name__}, batch sampler "
            f"{type(batch_sampler).__name__}), and the order must be swamp's. Give its Dataset, a "
            "torch.utils.data.Subset for a part of it, or list(loader) for batches as they are."
        )
    if cast(Any, loader).collate_fn is default_collate and type(loader.dataset) is TensorDataset:
        found = _in_memory(loader.dataset, to_batch)
    else:
        found = DatasetData(loader.dataset, _Collate(cast(Any, loader).collate_fn, to_batch), loader.num_workers)
    return replace(found, loader_batch_size=loader.batch_size)


def _in_memory(dataset: TensorDataset, to_batch: Callable[[Any], Batch]) -> TensorData | DatasetData:
    # The same batches, with one gather per batch in place of one read per example.
    tensors: Any = dataset.tensors
    if to_batch is as_batch and len(tensors) >= 2:
        return TensorData(tensors[0] if len(tensors) == 2 else tensors[:-1], tensors[-1])
    if to_batch is opaque:
        # default_collate gives a list of tensors.
        return TensorData(list(tensors), torch.empty(len(dataset), 0))
    return DatasetData(dataset, _Collate(_default_collate, to_batch))


@dataclass(frozen=True)
class _OwnPairs:
    """Data of this library, whose batches (inputs, targets) are opaque."""

    data: Data

    def __len__(self) -> int:
        return len(self.data)

    def steps(self, batch_size: int) -> int:
        return self.data.steps(batch_size)

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        return map(opaque, self.data.shuffled(batch_size, seed, epoch, first))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        return map(opaque, self.data.in_order(batch_size))

    def to(self, device: torch.device) -> "_OwnPairs":
        return _OwnPairs(self.data.to(device))

    @property
    def subset(self) -> "Callable[[Tensor], _OwnPairs] | None":
        # None where the data have no method `subset`: see `sampled`.
        subset: Any = getattr(self.data, "subset", None)
        return None if subset is None else lambda index: _OwnPairs(subset(index))
