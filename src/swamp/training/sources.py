"""Conversion of tensors, DataLoaders, Datasets and iterables to Data."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,  # pyright: ignore[reportUnknownVariableType]
)

from swamp.errors import SwampError
from swamp.training.data import BatchList, Data, DatasetData, TensorData


def as_data(source: Any) -> Data:
    """Convert a source of examples to `Data`.

    Args:
        source: A pair of tensors (inputs, targets); a DataLoader, of which the dataset, collate function and number of
            workers are used, but not the order; a Dataset; an iterable of batches, which is read into memory once; or
            `Data`, which is returned unchanged.

    Returns:
        TensorData, DatasetData or BatchList.

    Raises:
        SwampError: The source has another type, is empty, or is a DataLoader with its own sampler.

    Example:
        >>> import torch
        >>> data = as_data((torch.randn(6, 2), torch.arange(6)))
        >>> type(data).__name__, len(data)
        ('TensorData', 6)
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, tuple) and len(cast(tuple[Any, ...], source)) == 2 and isinstance(source[1], Tensor):
        return TensorData(*cast(tuple[Any, Tensor], source))
    if isinstance(source, DataLoader):
        return _of_loader(cast("DataLoader[Any]", source))
    if isinstance(source, TensorDataset):
        return _in_memory(source) or DatasetData(source)
    given = cast(Any, source)
    indexed = hasattr(given, "__getitem__") and hasattr(given, "__len__")
    if indexed and not isinstance(source, list | tuple | Mapping | str | bytes | Tensor | np.ndarray):
        return DatasetData(given)
    if isinstance(source, Iterable) and (not indexed or isinstance(source, list | tuple)):
        return BatchList(list(cast("Iterable[Any]", source)))
    raise SwampError(
        f"cannot take batches from a {type(given).__name__}. Give a pair of tensors (inputs, targets), a DataLoader, "
        "a Dataset, or an iterable of (inputs, targets) batches."
    )


def _of_loader(loader: "DataLoader[Any]") -> Data:
    sampler, batch_sampler = cast(Any, loader).sampler, cast(Any, loader).batch_sampler
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
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
    plain = cast(Any, loader).collate_fn is default_collate and isinstance(loader.dataset, TensorDataset)
    held = _in_memory(cast(TensorDataset, loader.dataset)) if plain else None
    return held or DatasetData(loader.dataset, cast(Any, loader).collate_fn, loader.num_workers)


def _in_memory(dataset: TensorDataset) -> TensorData | None:
    # The same batches, with one gather per batch in place of one read per example.
    return TensorData(*dataset.tensors) if len(dataset.tensors) == 2 else None
