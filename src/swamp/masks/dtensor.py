"""Tensors sharded over processes by rows: torch's DTensor as FSDP2 creates it.

A DTensor is recognised by its attributes, so that nothing here imports torch.distributed. Any other tensor counts as
full, and as its own local shard.
"""

from typing import Any, cast

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor, of which other processes may hold parts."""
    return hasattr(tensor, "device_mesh")


def to_local(tensor: Tensor) -> Tensor:
    """The rows that this process holds, in the same memory."""
    return cast(Any, tensor.detach()).to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor on every process. A collective: all processes must call it for the same tensors in one order."""
    return cast(Any, tensor.detach()).full_tensor() if is_sharded(tensor) else tensor


def gathered_copy(tensor: Tensor) -> Tensor:
    """A copy that later training does not change.

    For a sharded tensor: the full tensor in the CPU memory of the first process, an empty tensor on the others.
    A collective, as `full_tensor` is.
    """
    if not is_sharded(tensor):
        return tensor.detach().clone()
    full = full_tensor(tensor)
    return full.cpu() if cast(Any, tensor).device_mesh.get_local_rank() == 0 else torch.empty(0, dtype=full.dtype)


def local_shard(value: Tensor, like: Tensor) -> Tensor:
    """The rows of the full tensor `value` that this process holds of `like`, a tensor of the same shape."""
    if not is_sharded(like):
        return value
    mesh = cast(Any, like).device_mesh
    # As torch.chunk splits: shards of equal size, except the last ones, which may be short or empty.
    rows = -(-value.shape[0] // mesh.size())
    return value[mesh.get_local_rank() * rows :][:rows]


def shard_like(value: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """The full tensor `value` stored as `like` of the same shape: its device, memory format and sharding."""
    stored = torch.empty_like(like, dtype=dtype)
    to_local(stored).copy_(local_shard(value, like))
    return stored
