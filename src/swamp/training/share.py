"""One training done by several processes, each on its own rows of every batch."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn


class Share(Protocol):
    """This process's part of such a training. Order, augmentation and dropout are those of the whole batch."""

    def shard(self, model: nn.Module) -> bool:
        """Before the training: spread the parameters of `model` over the processes, or (False) leave them whole.

        Spread ones get the sum of all processes' gradients by themselves. Each keeps its part of whatever is kept of
        them; the whole is put together (see sparsity/spread.py) for a snapshot and at the end.
        """
        ...

    def rows(self, examples: int) -> slice:
        """Own rows of a batch of so many examples."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """Around forward and backward: batch normalisation inside takes the statistics of all rows."""
        ...

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, but for those that are spread, by its sum over the processes."""
        ...
