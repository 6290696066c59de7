"""Atomic file writes (temporary file, sync, rename), tensors as safetensors, and JSON. Nothing is pickled."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Generator, Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from swamp.errors import CorruptFile, SwampError

_CHECKSUM = "swamp-checksum"
_COMPLEX = "swamp-complex"

_MOST_TEXT = 2**28
"""Bytes. The largest records are a hundredth of this; a device such as /dev/zero has no end."""

_HALVES = re.compile(rb"\\u[dD]")
"""Candidates for an escaped half of a surrogate pair in JSON: \\ud800 to \\udfff."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: a reader, or a crash, sees the old file or the new one.

    Raises SwampError if it cannot be written; the old file stays.
    """
    if path.is_dir():
        raise SwampError(f"could not write {path}: it is a folder. Give the path of a file.")
    # Not tempfile.mkstemp: its files are readable by the user only, and a run directory is often shared.
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
            f"could not write {path}: {error.strerror or error}. Existing files are kept; "
            "free disk space or choose another directory, then resume."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, synced to disk. Raises OSError if that fails."""
    if folder.is_dir():
        return
    if folder.exists():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder")
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_directory(folder.parent)


def sign(handle: int, name: str) -> None:
    """Write the name of its holder into a lock file, for people to read; errors are ignored."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, name.encode(), 0)


@contextlib.contextmanager
def lock_file(path: Path, what: str) -> Generator[int]:
    """The handle of a lock file, which is created if needed and closed after the block: that ends its lock.

    Raises SwampError if it cannot be created; `what` names its folder there.
    """
    try:
        make_folder(path.parent)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SwampError(f"cannot write to {what} {path.parent}: {error.strerror}.") from error
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Generator[None]:
    """Exclusive lock on the file `path` inside the block; other processes wait without a timeout.

    Raises SwampError if the file cannot be created.
    """
    with lock_file(path, "the folder") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def remove_unfinished(path: Path) -> None:
    """Delete temporary files that a killed process left for the file `path`, or below the folder `path`.

    No other process may be writing there.
    """
    folder, name = (path, ".+") if path.is_dir() else (path.parent, re.escape(path.name))
    for beside in folder.rglob(".*") if path.is_dir() else folder.glob(".*"):
        if re.fullmatch(rf"\.{name}\.[0-9a-f]{{8}}", beside.name):
            beside.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Save tensors (tied ones as copies, as safetensors requires) and text metadata, atomically and with a checksum."""
    apart = {name: tensor.detach().resolve_conj().resolve_neg().cpu() for name, tensor in tensors.items()}
    apart = {name: tensor.contiguous().clone() for name, tensor in apart.items()}
    about = dict(metadata or {})
    own = {_CHECKSUM: _checksum(apart, about)}
    pairs = {name: one for name, one in apart.items() if one.is_complex() and not _storable(one.dtype)}
    if pairs:
        own[_COMPLEX] = json.dumps({name: str(one.dtype).removeprefix("torch.") for name, one in pairs.items()})
        apart |= {name: torch.view_as_real(one) for name, one in pairs.items()}
    write_atomic(path, _serialized(apart, {**about, **own}))


@cache
def _storable(dtype: torch.dtype) -> bool:
    """Whether this version of safetensors has the data type; other complex numbers are stored as pairs."""
    try:
        return bool(safetensors.torch.save({"one": torch.zeros(1, dtype=dtype)}))
    except (KeyError, ValueError, safetensors.SafetensorError):
        return False


def _serialized(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    try:
        return safetensors.torch.save(tensors, metadata=metadata)
    except BaseException as error:
        # Without memory the library raises a Rust panic: not an Exception, and of a type that cannot be imported.
        if type(error).__name__ == "PanicException":
            raise MemoryError(f"for a file of tensors: {error}") from error
        raise


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file; a checksum of `save_tensors` is verified.

    Raises CorruptFile for a file that is missing, truncated or altered, SwampError for missing read permission.
    """
    with _opened(path) as file:
        metadata: dict[str, str] = dict(file.metadata() or {})
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stated, pairs = metadata.pop(_CHECKSUM, None), metadata.pop(_COMPLEX, None)
    if pairs is not None:
        tensors |= _joined(path, tensors, pairs)
    if stated not in (None, _checksum(tensors, metadata)):
        raise CorruptFile(f"{path} is damaged: its contents do not match its own checksum. Restore it from a copy.")
    return tensors, metadata


def _joined(path: Path, tensors: Mapping[str, Tensor], pairs: str) -> dict[str, Tensor]:
    """The complex tensors that are stored as pairs of real numbers (..., 2)."""
    try:
        names: dict[str, str] = parse_json(pairs)
        whole = {name: torch.view_as_complex(tensors[name]) for name in names}
    except (ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise CorruptFile(f"{path} is damaged: its complex tensors are incomplete. Restore it from a copy.") from error
    if {name: str(value.dtype) for name, value in whole.items()} != {n: f"torch.{dtype}" for n, dtype in names.items()}:
        raise CorruptFile(f"{path} is damaged: its complex tensors have another type. Restore it from a copy.")
    return whole


def load_metadata(path: Path) -> dict[str, str]:
    """The metadata only, without checksum. Raises as `load_tensors`."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def _opened(path: Path) -> Generator[Any]:
    try:
        opened: Any = safetensors.safe_open(path, framework="pt")  # Its stubs have no types.
        with opened as file:
            yield file
    except FileNotFoundError as error:
        raise CorruptFile(f"{path} does not exist; expected a safetensors file there.") from error
    except PermissionError as error:
        raise SwampError(f"{path} cannot be read ({error}); ask its owner for permission.") from error
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CorruptFile(f"{path} is not a complete safetensors file ({error}). Restore it from a copy.") from error


def require_format(path: Path | str, metadata: Mapping[str, str], expected: str, what: str) -> None:
    """Raise unless the metadata's "format" is `expected`, such as "swamp-mask-1"; `what` describes it in the message.

    SwampError for the format of a later version of swamp, CorruptFile for any other.
    """
    found, (kind, _, number) = metadata.get("format"), expected.rpartition("-")
    later = re.fullmatch(re.escape(kind) + r"-(\d{1,9})", found or "")
    if later and int(later[1]) > int(number):
        raise newer(path, f"format {found!r}, this one reads up to {expected!r}")
    if found != expected:
        raise CorruptFile(f"{path} is not {what} (format {found!r}, expected {expected!r}).")


def newer(path: Path | str, what: str) -> SwampError:
    """The error for a file of a later version of swamp."""
    return SwampError(
        f"{path} was written by a newer version of swamp ({what}). Upgrade: pip install --upgrade swamp. Nothing was "
        "changed."
    )


def quarantine(path: Path) -> Path:
    """Rename a damaged file, so that it is not read again but not lost; returns the new path."""
    names = (path.with_name(f"{path.name}.quarantined{f'-{number}' if number > 1 else ''}") for number in count(1))
    aside = next(name for name in names if not name.exists())
    try:
        path.rename(aside)
    except OSError as error:
        raise SwampError(f"could not move the damaged file {path} aside: {error.strerror}.") from error
    return aside


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises OSError, and ValueError if not UTF-8 or over 256 MiB."""
    with path.open("rb") as file:
        data = file.read(_MOST_TEXT + 1)
    if len(data) > _MOST_TEXT:
        raise ValueError(f"it is longer than {_MOST_TEXT >> 20} MiB")
    return data.decode("utf-8-sig")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises ValueError for invalid JSON, for nesting beyond Python's recursion limit, and for half of a surrogate pair,
    which could be neither written nor printed.
    """
    try:
        value = json.loads(text)
        if _HALVES.search(text if isinstance(text, bytes) else text.encode()):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except UnicodeEncodeError as error:
        raise ValueError("it has half of a character") from error


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (first 16 hexadecimal digits) over names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().resolve_conj().resolve_neg().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        # numpy declares its buffer protocol for Python 3.12 and later only.
        total.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
    return total.hexdigest()[:16]


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    about = json.dumps(dict(metadata), sort_keys=True)
    return hashlib.sha256(f"{digest(tensors)} {about}".encode()).hexdigest()[:16]


def _sync_directory(directory: Path) -> None:
    # Without this the rename may not survive a power failure. Some file systems cannot sync a directory; the file is
    # complete there too.
    try:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise
