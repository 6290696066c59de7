"""The shard of each batch that this process trains on, under data parallelism."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn


class Shard(Protocol):
    """One process of those that train one model. Order, augmentation and dropout are those of the whole batch."""

    def shard_parameters(self, model: nn.Module) -> bool:
        """Shard the parameters of `model` over the processes, before the training; False where they stay whole.

        The gradients of sharded parameters are summed over the processes by FSDP2. Each process keeps its rows of all
        training state; snapshots and the result are put together again (see masks/spread.py).
        """
        ...

    def rows(self, examples: int) -> slice:
        """The rows of this process in a batch of `examples` rows."""
        ...

    def synchronised_batchnorm(self) -> AbstractContextManager[Any, Any]:
        """Context around forward and backward in which BatchNorm uses the statistics of the whole batch."""
        ...

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in place; sharded tensors are left as they are."""
        ...
