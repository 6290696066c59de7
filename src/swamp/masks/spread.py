"""Tensors that are spread over processes, each holding some of their rows: torch's DTensor as FSDP2 makes it.

They are told from others by what they can do, so that nothing here needs torch.distributed. Any other tensor is whole
already, and its own part.
"""

from typing import Any, cast

import torch
from torch import Tensor


def is_spread(tensor: Tensor) -> bool:
    """Whether other processes hold parts of it."""
    return hasattr(tensor, "device_mesh")


def own(tensor: Tensor) -> Tensor:
    """The part that this process holds, in the same memory."""
    return cast(Any, tensor.detach()).to_local() if is_spread(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on each process. All of them must ask at the same time, for one after the other alike."""
    return cast(Any, tensor.detach()).full_tensor() if is_spread(tensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """A copy that later training does not reach.

    Of one that is spread: all of it, in the CPU's memory of the first process, and nothing on the others. All of them
    must ask for it as for `whole`.
    """
    if not is_spread(tensor):
        return tensor.detach().clone()
    found = whole(tensor)
    return found.cpu() if cast(Any, tensor).device_mesh.get_local_rank() == 0 else torch.empty(0, dtype=found.dtype)


def own_part(value: Tensor, like: Tensor) -> Tensor:
    """Of a whole `value` the rows that this process holds of `like`, which has its shape."""
    if not is_spread(like):
        return value
    mesh = cast(Any, like).device_mesh
    # As torch.chunk cuts them: all parts of one size, but for the last ones, which may be short or empty.
    rows = -(-value.shape[0] // mesh.size())
    return value[mesh.get_local_rank() * rows :][:rows]


def spread_like(value: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A whole `value` as `like` is stored, which has its shape: device, order in memory, parts."""
    stored = torch.empty_like(like, dtype=dtype)
    own(stored).copy_(own_part(value, like))
    return stored
