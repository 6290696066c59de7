"""Tensors as bytes between processes: safetensors, never pickle, so that nothing that arrives can run."""

from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from swamp.errors import SwampError
from swamp.files import digest


def packed(tensors: Mapping[str, Tensor]) -> Tensor:
    """Tensors as one uint8 tensor on the CPU; tied ones as copies, which safetensors asks for."""
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return torch.frombuffer(bytearray(safetensors.torch.save(apart)), dtype=torch.uint8)  # pyright: ignore[reportUnknownMemberType]


def unpacked(data: Tensor) -> dict[str, Tensor]:
    """What `packed` made. Raises SwampError for anything else."""
    # numpy declares its buffer protocol only for Python 3.12 and later.
    whole = bytes(memoryview(data.numpy()))  # pyright: ignore[reportArgumentType]
    try:
        return safetensors.torch.load(whole)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise SwampError(f"a message of {len(whole)} bytes from another rank is damaged ({error}).") from error


def broadcast(data: Tensor | None, size: int) -> Tensor:
    """`data` of rank 0 on every rank; the others give None and its size in bytes."""
    given = torch.empty(size, dtype=torch.uint8) if data is None else data
    dist.broadcast(given, 0)  # pyright: ignore[reportUnknownMemberType]
    return given


def send(data: Tensor) -> None:
    """Send `data` to rank 0, which is in `receive` by now."""
    dist.send(data, 0)  # pyright: ignore[reportUnknownMemberType]


def receive(rank: int, size: int) -> Tensor:
    """So many bytes from another rank."""
    given = torch.empty(size, dtype=torch.uint8)
    dist.recv(given, rank)  # pyright: ignore[reportUnknownMemberType]
    return given


def checked(tensors: dict[str, Tensor], expected: str, what: str) -> dict[str, Tensor]:
    """The tensors, if they have the digest that their sender named."""
    found: Any = digest(tensors)
    if found != expected:
        raise SwampError(f"the {what} arrived as {found}, it was sent as {expected}: the network damaged it.")
    return tensors
