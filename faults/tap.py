"""Intercepts the changes of a process to files below a folder, to log or refuse them, or to end the process."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Seen = Callable[[str, Path, bytes], None]
"""Called with (operation, path, data) before each change; raises OSError to refuse it. For a replace, path is the new
path and data the old one; for a sync, path is the file or folder."""


def tap(folder: Path, seen: Seen) -> None:
    """Call `seen` before each change of this process below `folder`."""
    for name in ("mkdir", "unlink", "rmdir"):
        setattr(os, name, _by_path(name, getattr(os, name), folder, seen))
    for name in ("fsync", "pwrite", "ftruncate"):
        setattr(os, name, _by_handle(name, getattr(os, name), folder, seen))
    replace, opened, low = os.replace, io.open, os.open

    def replacing(source: Any, target: Any) -> None:
        if (inside := _below(target, folder)) is not None:
            seen("replace", inside, os.fsencode(source))
        replace(source, target)

    def opening(path: Any, mode: str = "r", *others: Any, **more: Any) -> Any:
        inside = _below(path, folder) if set(mode) & set("wxa") else None
        if inside is None:
            return opened(path, mode, *others, **more)
        seen("create", inside, b"")
        return _File(opened(path, mode, *others, **more), inside, seen)

    def opening_low(path: Any, flags: int, *others: Any, **more: Any) -> int:
        if flags & os.O_CREAT and (inside := _below(path, folder)) is not None and not inside.exists():
            seen("open", inside, b"")
        return low(path, flags, *others, **more)

    os.replace, io.open, os.open = replacing, opening, opening_low


def _below(path: Any, folder: Path) -> Path | None:
    try:
        whole = Path(os.path.abspath(os.fspath(path)))
    except TypeError:
        return None
    return whole if whole.is_relative_to(folder) else None


def _by_path(name: str, operation: Callable[..., Any], folder: Path, seen: Seen) -> Callable[..., Any]:
    def wrapped(path: Any, *others: Any, **more: Any) -> Any:
        if (inside := _below(path, folder)) is not None:
            seen(name, inside, b"")
        return operation(path, *others, **more)

    return wrapped


def _by_handle(name: str, operation: Callable[..., Any], folder: Path, seen: Seen) -> Callable[..., Any]:
    def wrapped(handle: int, *others: Any) -> Any:
        if (inside := _below(os.readlink(f"/proc/self/fd/{handle}"), folder)) is not None:
            seen(name, inside, b"")
        return operation(handle, *others)

    return wrapped


class _File:
    """A file opened for writing; the disk may become full in the middle of a write."""

    def __init__(self, file: Any, path: Path, seen: Seen) -> None:
        self.file, self.path, self.seen = file, path, seen

    def write(self, data: Any) -> int:
        try:
            self.seen("write", self.path, data if isinstance(data, bytes) else str(data).encode())
        except OSError:
            self.file.write(data[: len(data) // 2])
            raise
        return self.file.write(data)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)
