"""Sequences of tokens in memory: batches of examples of similar length, padded to the longest among them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.training.data import Batch
from swamp.training.rng import Seed, permutation

_POOL = 32
"""Batches of an epoch that are sorted by length together: more pad less, fewer mix better."""
_GROUP = 64
"""Examples of nearly one length that are evaluated together, at most."""


@dataclass(frozen=True, eq=False)
class TokenData:
    """Examples of any length: their tokens one after the other, cut and padded a batch at a time.

    tokens: name -> (sum of lengths,) integers, such as `input_ids`; all are padded with `padding`.
    lengths: (n,) int64, 1 or more. targets: (n, ...).
    The inputs of a batch are these names, each (batch, longest) int64, and `attention_mask` (1: a token, 0: padding).
    An incomplete last batch is dropped in training (unless it is the only one), as every step should weigh the same.
    """

    tokens: Mapping[str, Tensor]
    lengths: Tensor
    targets: Tensor
    padding: int = 0

    def __post_init__(self) -> None:
        if not len(self.targets):
            raise SwampError("the data set is empty: 0 examples were given, at least one is needed.")
        if len(self.lengths) != len(self.targets) or not self.tokens:
            raise SwampError(f"{len(self.lengths)} sequences of tokens do not match {len(self.targets)} targets.")
        if int(self.lengths.min()) < 1:
            first = int((self.lengths < 1).nonzero()[0])
            raise SwampError(f"example {first} has no token. Leave empty texts out.")
        total = int(self.lengths.sum())
        wrong = [name for name, values in self.tokens.items() if len(values) != total]
        if wrong:
            raise SwampError(f"{wrong[0]!r} has {len(self.tokens[wrong[0]])} tokens, the lengths add up to {total}.")

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def equal_lengths(self) -> bool:
        """Whether all examples have one length, so that every batch has the shape of every other."""
        return bool(self.lengths.min() == self.lengths.max())

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch of `shuffled`."""
        return max(1, len(self) // batch_size)

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch number `first` on.

        The examples in the epoch's order are sorted by length, some batches' worth at a time; then the order of the
        batches is drawn.
        """
        steps, size = self.steps(batch_size), min(batch_size, len(self))
        order = permutation(seed, epoch, len(self))[: steps * size]
        lengths = self.lengths.cpu()
        pools = [pool[lengths[pool].argsort(stable=True)] for pool in _pieces(order, _POOL * size)]
        batches = torch.cat(pools).view(steps, size)[permutation(seed.at("buckets"), epoch, steps)]
        for index in batches[first:].to(self.targets.device):
            yield self.gather(index)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All examples once, in a fixed order of short and long ones, in batches of `batch_size` or less."""
        for index in _pieces(self._fixed.to(self.targets.device), min(batch_size, _GROUP)):
            yield self.gather(index)

    def to(self, device: torch.device) -> "TokenData":
        """The same data on `device`."""
        if self.targets.device == device:
            return self
        tokens = {name: values.to(device) for name, values in self.tokens.items()}
        return replace(self, tokens=tokens, lengths=self.lengths.to(device), targets=self.targets.to(device))

    def subset(self, index: Tensor) -> "TokenData":
        """The examples at `index` (int64)."""
        inputs, targets = self.gather(index)
        alive = inputs["attention_mask"].bool()
        tokens = {name: inputs[name][alive].to(values.dtype) for name, values in self.tokens.items()}
        return replace(self, tokens=tokens, lengths=self.lengths[index], targets=targets)

    def gather(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs, padded to the longest of them, and targets of the examples at `index` (int64)."""
        lengths = self.lengths[index]
        places = torch.arange(int(lengths.max()), device=index.device)
        alive = places < lengths[:, None]
        positions = (self._starts[index][:, None] + places).where(alive, 0)
        inputs = {name: values[positions].long().where(alive, self.padding) for name, values in self.tokens.items()}
        return {**inputs, "attention_mask": alive.long()}, self.targets[index]

    @cached_property
    def _starts(self) -> Tensor:
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def _fixed(self) -> Tensor:
        # Groups of one length pad little; in random order, so that the first examples are fair ones of all; and one of
        # middling length first of all, as operations are counted on the first example. The incomplete one is the last.
        groups = _pieces(self.lengths.cpu().argsort(stable=True), _GROUP)
        middle, *longest = groups.pop((len(groups) - 1) // 2), *groups[-1:]
        inner = groups[:-1]
        order = permutation(Seed(0).at("evaluation"), 0, len(inner))
        return torch.cat([middle, *(inner[int(place)] for place in order), *longest])


def _pieces(index: Tensor, size: int) -> list[Tensor]:
    return [index[start : start + size] for start in range(0, len(index), size)]
