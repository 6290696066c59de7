"""Files that are whole or not there: written beside, synced, renamed. Tensors go as safetensors; nothing is pickled."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from swamp.errors import SwampError

_MOST_TEXT = 2**28
"""Bytes. The largest records are a hundredth of it, and a device such as /dev/zero never ends."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one and nothing between.

    Raises SwampError when it cannot be written; what was there before stays.
    """
    # Not tempfile.mkstemp: its files are private to the user, and a run directory is often shared.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise SwampError(
            f"could not write {path}: {error.strerror or error}. Nothing that was there is lost; "
            "free some disk space or choose another directory, then go on."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    _sync_directory(path.parent)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Generator[None]:
    """A block that one process at a time is in, by a lock on the file `path`; others wait, for as long as that takes.

    Raises SwampError where the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SwampError(f"cannot write to the folder {path.parent}: {error.strerror}.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left half-written anywhere below `folder`; nobody else may be writing there."""
    for beside in folder.rglob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", beside.name):
            beside.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Save tensors (tied ones as copies, which safetensors asks for) and text metadata, atomically."""
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(apart, metadata=dict(metadata or {})))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_tensors` wrote. Raises SwampError for a file that is missing, cut short or damaged."""
    try:
        opened: Any = safetensors.safe_open(path, framework="pt")  # Its stubs leave all types out.
        with opened as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError as error:
        raise SwampError(f"{path} does not exist; expected a safetensors file there.") from error
    except PermissionError as error:
        raise SwampError(f"{path} may not be read ({error}); ask its owner for the right to.") from error
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise SwampError(f"{path} is not a whole safetensors file ({error}); restore it or delete it.") from error


def read_text(path: Path) -> str:
    """The text of a file of settings or records. Raises OSError, and ValueError where it is no UTF-8 or has no end."""
    with path.open("rb") as file:
        data = file.read(_MOST_TEXT + 1)
    if len(data) > _MOST_TEXT:
        raise ValueError(f"it is longer than {_MOST_TEXT >> 20} MiB")
    return data.decode()


def parse_json(text: str | bytes) -> Any:
    """What JSON says. Raises ValueError for anything else, also for what is nested deeper than Python can follow."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (first 16 hexadecimal digits) over names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        # numpy declares its buffer protocol only for Python 3.12 and later.
        total.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
    return total.hexdigest()[:16]


def _sync_directory(directory: Path) -> None:
    # Without this the rename itself may not survive a power cut. Some systems cannot sync a directory: the file is
    # whole there all the same.
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
