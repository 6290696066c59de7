"""The run directory: which file lies where, and who may write."""

import fcntl
import json
import math
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from swamp.errors import Busy, SwampError
from swamp.files import parse_json, read_text, remove_unfinished, write_atomic


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run. What lies in it is enough to go on; nothing else is."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, runnable again with `swamp run --config`."""
        return self.path / "config.json"

    @property
    def original(self) -> Path:
        """The configuration the run began with: a changed config.json is noticed by it."""
        return self.path / ".config.json"

    @property
    def metrics(self) -> Path:
        """One line of JSON a finished cycle."""
        return self.path / "metrics.jsonl"

    @property
    def environment(self) -> Path:
        """Versions, device and git state of every session that worked on the run."""
        return self.path / "environment.json"

    @property
    def backend(self) -> Path:
        """How particles are trained, as it was chosen by timing."""
        return self.path / "backend.json"

    @property
    def summary(self) -> Path:
        """The last word, written when the run is finished."""
        return self.path / "summary.json"

    @property
    def model(self) -> Path:
        """State dict of the last finished cycle's sparse model."""
        return self.path / "model.safetensors"

    @property
    def mask(self) -> Path:
        """Mask of the last finished cycle."""
        return self.path / "mask.safetensors"

    @property
    def ticket(self) -> Path:
        """The ticket."""
        return self.path / "ticket.safetensors"

    def cycle(self, index: int) -> Path:
        """Folder of one cycle."""
        return self.path / f"cycle-{index:02d}"

    def record(self, index: int) -> Path:
        """The cycle's record; a cycle is finished when this file is there."""
        return self.cycle(index) / "record.json"

    @property
    def finished(self) -> int:
        """Finished cycles."""
        return next(index for index in range(10**9) if not self.record(index).exists())

    def particle(self, cycle: int, index: int) -> Path:
        """A finished particle."""
        return self.cycle(cycle) / f"particle-{index}.safetensors"

    def trajectory(self, cycle: int, index: int) -> Path:
        """The path that a particle took in training."""
        return self.cycle(cycle) / f"path-{index}.safetensors"

    def snapshot(self, cycle: int | None, index: int) -> Path:
        """A training in progress (cycle None: the ticket's)."""
        return (self.path if cycle is None else self.cycle(cycle)) / f"unfinished-{index}.safetensors"

    def phase(self, cycle: int) -> Path:
        """The particles of a cycle whose masks change, as they stood after a change."""
        return self.cycle(cycle) / "unfinished.safetensors"

    def member(self, index: int) -> "RunDirectory":
        """The run of one member of an ensemble."""
        return RunDirectory(self.path / f"member-{index}")

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep every other process out of this run; the system lifts the lock of a process that dies.

        Raises Busy where another process is in, and SwampError for a directory that cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SwampError(f"cannot write to the run directory {self.path}: {error.strerror}.") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = os.pread(handle, 128, 0).decode(errors="replace").strip() or "unknown"
                raise Busy(
                    f"{self.path} is being written by process {owner}. Wait for it, stop it, or choose another --out."
                ) from error
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            remove_unfinished(self.path)
            yield
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. NaN becomes null, as JSON knows no other."""
    write_atomic(path, (json.dumps(finite(value), indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON. Raises SwampError naming the file when it is damaged."""
    try:
        return parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise SwampError(f"{path} is damaged or unreadable ({error}). Restore it, or delete it and resume.") from error


def finite(value: Any) -> Any:
    """The same plain values with None for every number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in cast("list[Any]", value)]
    return value
