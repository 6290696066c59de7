"""What people bring as data, and what becomes of it."""

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
    """Data from what people have: (inputs, targets) tensors, a DataLoader, a Dataset, or any iterable of batches.

    Of a DataLoader its dataset, collate function and workers are used; the order is ours, as particles must differ
    in it and resume must repeat it. An iterable of batches is read into memory once. Raises SwampError for anything
    else, and for a DataLoader that chooses examples itself.
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
    # A SubsetRandomSampler is how many scripts hold validation data out: to drop it in silence would train on them.
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
    # The same batches, gathered whole instead of example by example.
    return TensorData(*dataset.tensors) if len(dataset.tensors) == 2 else None
