"""The shard of each batch that this process trains on, under data parallelism."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn


class Shard(Protocol):
    """One of the processes that train one model. Order, augmentation and dropout are computed for the whole batch."""

    def shard_parameters(self, model: nn.Module) -> bool:
        """Shard the parameters of `model` over the processes, before training. Returns False if they are replicated.

        FSDP2 sums the gradients of sharded parameters over the processes. Each process holds its rows of all training
        state; snapshots and results are full tensors (see masks/dtensor.py).
        """
        ...

    def rows(self, examples: int) -> slice:
        """The rows of this process in a batch of `examples` rows."""
        ...

    def synchronised_batchnorm(self) -> AbstractContextManager[Any, Any]:
        """Context around forward and backward in which BatchNorm uses the statistics of the whole batch."""
        ...

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in place; sharded tensors are unchanged."""
        ...
