"""Streams: training data that are read in order and may have no end."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import default_collate  # pyright: ignore[reportUnknownVariableType]

from swamp.batches import Batch, as_batch, first_of
from swamp.errors import SwampError
from swamp.training.rng import Seed, isolated

_BUFFER = 16
"""Batches in the shuffle buffer of a stream."""


@dataclass(frozen=True, eq=False)
class StreamData:
    """Training data that can only be read in order, such as an IterableDataset; an epoch is a number of batches.

    A stream in a fixed order passes through a shuffle buffer of 16 batches, so that particles see different orders. A
    stream that ends starts again. A training that resumes reads and drops the batches before it.

    Args:
        source: An iterable of examples, or of batches if `collate` is None; or a function of a seed (an int) that
            returns an iterator of batches, which are not shuffled.
        steps_per_epoch: Batches in an epoch (None: the length of `source` gives it).
        collate: Examples -> batch.
        to_batch: Converts each batch to (inputs, targets).
        examples: `in_order` ends with the batch that makes up so many examples (None: with the epoch).

    Raises:
        SwampError: The number of batches is neither given nor known, or is not positive.

    Examples:
        >>> data = StreamData(lambda seed: iter([(torch.ones(2, 3), torch.tensor([0, 1]))]), 2, None)
        >>> [targets.tolist() for _, targets in data.in_order(2)]  # a pass has one batch, an epoch two
        [[0, 1], [0, 1]]
    """

    source: Any
    steps_per_epoch: int | None = None
    collate: Callable[[list[Any]], Any] | None = default_collate  # pyright: ignore[reportUnknownVariableType]
    to_batch: Callable[[Any], Batch] = as_batch
    examples: int | None = None
    _live: dict[tuple[Any, ...], "tuple[int, Iterator[Batch]]"] = field(
        default_factory=dict[Any, Any], init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.steps_per_epoch is None and self._length() is None:
            raise SwampError(
                f"a stream ({type(self.source).__name__}) has no length: give steps_per_epoch, the number of batches "
                "in an epoch of training data; or list(DataLoader(dataset, batch_size=...)) for data that fit in "
                "memory, and for test and validation data."
            )
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise SwampError(f"steps_per_epoch must be at least 1, got {self.steps_per_epoch}.")

    def _length(self) -> int | None:
        try:
            return len(self.source)
        except TypeError:
            return None

    def __len__(self) -> int:
        """Number of examples where it is known; otherwise the batches of an epoch, the least there may be."""
        length = self._length()
        return self.steps_per_epoch or 1 if length is None or self.collate is None else length

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch of `shuffled`."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        return max(1, (self._length() or 0) // self._size(batch_size))

    def _size(self, batch_size: int) -> int:
        """Items of the source in a batch."""
        return 1 if self.collate is None else batch_size

    def batch_examples(self, batch_size: int) -> int:
        """Examples in a batch: of the first batch, where the stream yields batches."""
        if self.collate is not None:
            return batch_size
        return len(next(self.in_order(batch_size))[1])

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, without the first `first` batches."""
        steps = self.steps(batch_size)
        position, key = epoch * steps + first, _key(batch_size, seed)
        at, batches = self._live.pop(key, (-1, iter(())))
        if at != position:
            batches = self._batches(batch_size, seed)
            for _ in range(position):
                next(batches)
        try:
            for _ in range(first, steps):
                batch = next(batches)
                position += 1
                yield batch
        finally:
            self._live[key] = position, batches

    def close(self, batch_size: int, seed: Seed) -> None:
        """End the stream of `seed`, with its buffer and its worker processes: its training is over."""
        self._live.pop(_key(batch_size, seed), None)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """The first batches of the stream, as many as an epoch has at most, not shuffled.

        Where the length tells how many these are, an incomplete last batch is among them.
        """
        steps = self.steps_per_epoch or max(1, -(-(self._length() or 0) // self._size(batch_size)))
        return first_of(islice(self._batches(batch_size, None), steps), self.examples)

    def to(self, device: torch.device) -> "StreamData":
        """The same stream: each batch is moved to the device when it is used."""
        del device
        return replace(self)

    def _batches(self, batch_size: int, seed: Seed | None) -> Iterator[Batch]:
        """All batches, pass after pass. seed: None reads the stream in its own order."""
        stream = (Seed(0) if seed is None else seed).at("stream")
        found = self._raw_batches(batch_size, stream, shuffle=seed is not None)
        for step in count():
            # The stream may draw from the global generators: seeded at each step, for the same batch after a resume.
            with isolated(stream.at(step)):
                batch = self.to_batch(next(found))
            yield batch

    def _raw_batches(self, batch_size: int, stream: Seed, *, shuffle: bool) -> Iterator[Any]:
        # An iterable that has no __iter__ is a function of the seed.
        by_seed = callable(self.source) and not hasattr(self.source, "__iter__")
        for number in count():
            order = stream.at("pass", number)
            source: Any = self.source
            items: Iterator[Any] = iter(source(order.number()) if by_seed else source)
            if shuffle and not by_seed:
                items = _buffered(items, _BUFFER * self._size(batch_size), order)
            drop = shuffle or self.steps_per_epoch is not None
            batches = items if self.collate is None else _collated(items, batch_size, self.collate, drop=drop)
            empty = True
            for batch in batches:
                empty = False
                yield batch
            if empty:
                raise SwampError(f"the stream {type(self.source).__name__} gave no batch in pass {number}.")


def close_streams(data: Any, batch_size: int, seeds: Iterable[Seed]) -> None:
    """End the streams of these seeds, if `data` are a stream."""
    if isinstance(data, StreamData):
        for seed in seeds:
            data.close(batch_size, seed)


def _key(batch_size: int, seed: Seed) -> tuple[Any, ...]:
    return (seed.root, seed.path, seed.borrowed, batch_size)


def _buffered(items: Iterator[Any], size: int, seed: Seed) -> Iterator[Any]:
    """`items` in random order, through a buffer of `size` items."""
    generator = seed.generator()
    buffer: list[Any] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = int(torch.randint(size, (), generator=generator))
        yield buffer[place]
        buffer[place] = item
    for place in torch.randperm(len(buffer), generator=generator):
        yield buffer[int(place)]


def _collated(
    items: Iterator[Any], batch_size: int, collate: Callable[[list[Any]], Any], *, drop: bool
) -> Iterator[Any]:
    """Batches of examples. drop: leave out an incomplete last batch, unless it is the only one."""
    first = True
    while part := list(islice(items, batch_size)):
        if len(part) == batch_size or first or not drop:
            yield collate(part)
        first = False
