"""Token sequences in memory: batches of examples of similar length, padded to the longest sequence of the batch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from swamp.batches import Batch
from swamp.errors import SwampError
from swamp.training.data import Data
from swamp.training.rng import Seed, permutation

_POOL = 32
"""Batches sorted by length at a time: a larger pool needs less padding, a smaller one mixes examples better."""
_GROUP = 64
"""Largest batch in evaluation, of examples of similar length."""


@dataclass(frozen=True, eq=False)
class TokenData(Data):
    """Token sequences of different lengths, stored without padding and padded batch by batch.

    The inputs of a batch are a mapping: each name of `tokens`, (batch, longest) int64, and `attention_mask` (1: token,
    0: padding). In training an incomplete last batch is dropped, unless it is the only one.

    Args:
        tokens: Name -> integers (sum of lengths,), such as `input_ids`: all sequences, concatenated.
        lengths: Number of tokens of each example, (n,) int64, 1 or more.
        targets: Tensor (n, ...).
        padding: Value of padded positions.

    Raises:
        SwampError: There are no examples, an example has no token, or the lengths do not match.

    Examples:
        >>> import torch
        >>> data = TokenData({"input_ids": torch.tensor([5, 6, 7])}, torch.tensor([1, 2]), torch.tensor([0, 1]))
        >>> inputs, targets = data.gather(torch.tensor([0, 1]))
        >>> inputs["input_ids"].tolist(), inputs["attention_mask"].tolist()
        ([[5, 0], [6, 7]], [[1, 0], [1, 1]])
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
            raise SwampError(f"example {first} has no token. Remove empty texts.")
        total = int(self.lengths.sum())
        wrong = [name for name, values in self.tokens.items() if len(values) != total]
        if wrong:
            raise SwampError(f"{wrong[0]!r} has {len(self.tokens[wrong[0]])} tokens, the lengths add up to {total}.")

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def equal_lengths(self) -> bool:
        """Whether all examples have the same length, so that all batches have the same shape."""
        return bool(self.lengths.min() == self.lengths.max())

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, without the first `first` batches.

        The shuffled examples are sorted by length within pools of 32 batches; then the batches are shuffled.
        """
        steps, size = self.steps(batch_size), min(batch_size, len(self))
        order = permutation(seed, epoch, len(self))[: steps * size]
        lengths = self.lengths.cpu()
        pools = [pool[lengths[pool].argsort(stable=True)] for pool in _pieces(order, _POOL * size)]
        batches = torch.cat(pools).view(steps, size)[permutation(seed.at("buckets"), epoch, steps)]
        for index in batches[first:].to(self.targets.device):
            yield self.gather(index)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All examples once, in a fixed order with mixed lengths, in batches of at most `batch_size`."""
        for index in _pieces(self._evaluation_order.to(self.targets.device), min(batch_size, _GROUP)):
            yield self.gather(index)

    def to(self, device: torch.device) -> "TokenData":
        """The same data on `device`."""
        if self.targets.device == device:
            return self
        tokens = {name: values.to(device) for name, values in self.tokens.items()}
        return replace(self, tokens=tokens, lengths=self.lengths.to(device), targets=self.targets.to(device))

    def subset(self, index: Tensor) -> "TokenData":
        """The examples at `index` (int64)."""
        index = index.to(self.targets.device)
        inputs, targets = self.gather(index)
        is_token = inputs["attention_mask"].bool()
        tokens = {name: inputs[name][is_token].to(values.dtype) for name, values in self.tokens.items()}
        return replace(self, tokens=tokens, lengths=self.lengths[index], targets=targets)

    def gather(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Padded inputs and targets of the examples at `index` (int64)."""
        lengths = self.lengths[index]
        columns = torch.arange(int(lengths.max()), device=index.device)
        is_token = columns < lengths[:, None]
        positions = (self._starts[index][:, None] + columns).where(is_token, 0)
        inputs = {name: values[positions].long().where(is_token, self.padding) for name, values in self.tokens.items()}
        return {**inputs, "attention_mask": is_token.long()}, self.targets[index]

    @cached_property
    def _starts(self) -> Tensor:
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def _evaluation_order(self) -> Tensor:
        # Groups of similar length need little padding. Their order is random, so that the first examples represent all
        # lengths. A group of median length is first, as FLOPs are counted on the first example. The incomplete group
        # is last.
        groups = _pieces(self.lengths.cpu().argsort(stable=True), _GROUP)
        middle, *longest = groups.pop((len(groups) - 1) // 2), *groups[-1:]
        inner = groups[:-1]
        order = permutation(Seed(0).at("evaluation"), 0, len(inner))
        return torch.cat([middle, *(inner[int(number)] for number in order), *longest])


def _pieces(index: Tensor, size: int) -> list[Tensor]:
    return [index[start : start + size] for start in range(0, len(index), size)]
