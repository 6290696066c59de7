"""One training done by several processes, each on its own rows of every batch."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor


class Share(Protocol):
    """This process's part of such a training. Order, augmentation and dropout are those of the whole batch."""

    def rows(self, examples: int) -> slice:
        """Own rows of a batch of so many examples."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """Around forward and backward: batch normalisation inside takes the statistics of all rows."""
        ...

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        ...
