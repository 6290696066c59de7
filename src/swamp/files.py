"""Files that are whole or not there: written beside, synced, renamed. Tensors go as safetensors; nothing is pickled."""

import contextlib
import errno
import fcntl
import hashlib
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


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one and nothing between.

    Raises SwampError when it cannot be written; what was there before stays.
    """
    # Not tempfile.mkstemp: its files are private to the user, and a run directory is often shared.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        make_folder(path.parent)
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise SwampError(
            f"could not write {path}: {error.strerror or error}. Nothing that was there is lost; "
            "free some disk space or choose another directory, then go on."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it where they are missing, so that a power cut does not take them away again.

    Raises OSError where that cannot be.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_directory(folder.parent)


def sign(handle: int, name: str) -> None:
    """Write into a lock who holds it. It is for people to read, so that a full disk is none of its business."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, name.encode(), 0)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Generator[None]:
    """A block that one process at a time is in, by a lock on the file `path`; others wait, for as long as that takes.

    Raises SwampError where the file cannot be made.
    """
    try:
        make_folder(path.parent)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SwampError(f"cannot write to the folder {path.parent}: {error.strerror}.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_unfinished(path: Path) -> None:
    """Delete what a killed process left half-written of the file `path`, or of any file below the folder `path`.

    Nobody else may be writing there.
    """
    folder, name = (path, ".+") if path.is_dir() else (path.parent, re.escape(path.name))
    for beside in folder.rglob(".*") if path.is_dir() else folder.glob(".*"):
        if re.fullmatch(rf"\.{name}\.[0-9a-f]{{8}}", beside.name):
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
    try:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise
