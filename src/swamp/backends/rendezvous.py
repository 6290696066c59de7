"""Connections between the ranks of a torchrun job: its key-value store, and torch's process group."""

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.rendezvous import rendezvous  # pyright: ignore[reportUnknownVariableType]

from swamp.backends.rank_variables import restarts, world_size
from swamp.errors import SwampError

_T = TypeVar("_T")
_SIOCGIFADDR = 0x8915


def first_host() -> str:
    """Address of the store."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def connect_store(seconds: float, check: Callable[[], None]) -> tuple[Any, int, int]:
    """The store that torchrun describes in the environment, the rank of this process, and the number of ranks.

    check: called while waiting; may raise. Raises RuntimeError if no store answers within `seconds`, and SwampError if
    the environment describes none.
    """
    try:
        store, rank, size = _in_thread(lambda: next(rendezvous("env://", timeout=timedelta(seconds=seconds))), check)
    except ValueError as error:
        raise SwampError(
            f"WORLD_SIZE={world_size()} announces several ranks, which cannot be connected ({error}). Start them with "
            "torchrun, or unset WORLD_SIZE for one process."
        ) from error
    return PrefixStore(f"swamp/{restarts()}", store), rank, size


def open_mesh(store: Any, rank: int, size: int, groups: int, seconds: float, check: Callable[[], None]) -> DeviceMesh:
    """The ranks as a mesh ("particle", "data") of `groups` groups of equal size. All ranks call it together.

    Opens the process group (gloo, and NCCL where there are GPUs), with a timeout of `seconds` for each transfer.
    Raises RuntimeError if a rank does not come.
    """
    cuda = torch.cuda.is_available()
    if not dist.is_initialized():
        _choose_interface()
        _in_thread(
            lambda: dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=PrefixStore(f"groups/{restarts()}", _own_connection(store)),
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=seconds),
            ),
            check,
        )
    each = size // groups
    layout = torch.arange(groups * each).view(groups, each)
    return DeviceMesh("cuda" if cuda else "cpu", layout, mesh_dim_names=("particle", "data"))


def close_process_group() -> None:
    """Close the connections of the process group, which wakes up ranks that wait for this one inside torch."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _own_connection(store: Any) -> Any:
    """Another connection to the same store: a wait in torch blocks every other use of its connection."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if not isinstance(store, TCPStore):
        return store
    return TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)


def _in_thread(work: Callable[[], _T], check: Callable[[], None]) -> _T:
    """The result of `work`, which waits inside torch and reacts to no signal; `check` is called meanwhile.

    If `check` raises, the thread is abandoned; it ends with the process.
    """
    results: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

    def run() -> None:
        try:
            results.put((work(), None))
        except Exception as error:
            results.put((None, error))

    Thread(target=run, daemon=True).start()
    while True:
        try:
            result, error = results.get(timeout=0.1)
        except Empty:
            check()
            continue
        if error is not None:
            raise error
        return result


def _choose_interface() -> None:
    """Have gloo use the network interface towards the first host; it uses the address of the host's name by default."""
    if "GLOO_SOCKET_IFNAME" in os.environ or "MASTER_ADDR" not in os.environ or not hasattr(socket, "if_nameindex"):
        return
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Connecting a datagram socket sends nothing: it only looks up the route.
        probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        address = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    os.environ["GLOO_SOCKET_IFNAME"] = name
                    return
