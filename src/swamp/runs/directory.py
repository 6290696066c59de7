"""The run directory: names of its files, their checksums and owner, and the lock that keeps other processes out."""

import fcntl
import hashlib
import json
import math
import os
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from swamp.backends.ticket import TRUNK
from swamp.errors import CorruptFile, RunLocked, SwampError
from swamp.files import (
    load_metadata,
    lock_file,
    newer,
    parse_json,
    read_text,
    remove_unfinished,
    sign,
    write_atomic,
)

_T = TypeVar("_T")
FORMAT = 1
"""Format number of run directories. It increases when a version writes files that the previous one cannot read."""
PROVENANCE = "provenance"
"""Key under which a JSON object holds its format, run, path below the run directory, and checksum."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run. The files below `path` are all that is needed to resume it."""

    path: Path
    run: str = ""
    """Fingerprint of the run, which each of its files must state; empty: any run is accepted."""
    folder: str = ""
    """Path of this directory relative to the run's own: `member-1` for a member of an ensemble, else empty."""

    @property
    def config(self) -> Path:
        """The resolved configuration, which `swamp run --config` can run again."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """Records of all finished cycles, one line of JSON per cycle."""
        return self.path / "metrics.jsonl"

    @property
    def environment(self) -> Path:
        """Versions, device and git state of every session that worked on the run."""
        return self.path / "environment.json"

    @property
    def backend(self) -> Path:
        """The backend chosen by timing."""
        return self.path / "backend.json"

    @property
    def summary(self) -> Path:
        """Results of the whole run, written when the run is finished."""
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

    @property
    def divergences(self) -> Path:
        """Diverged trainings, and how each was handled."""
        return self.path / "divergences.json"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files above, which lie in the run directory itself."""
        state = (self.config, self.metrics, self.environment, self.backend, self.summary, self.divergences)
        return (*state, self.model, self.mask, self.ticket)

    def cycle(self, index: int) -> Path:
        """Folder of one cycle."""
        return self.path / f"cycle-{index:02d}"

    def record(self, index: int) -> Path:
        """The cycle's record. The cycle is finished when this file exists."""
        return self.cycle(index) / "record.json"

    @property
    def finished(self) -> int:
        """Number of finished cycles before the first unfinished one."""
        return next(index for index in range(10**9) if not self.record(index).exists())

    @property
    def last(self) -> int:
        """Index of the last finished cycle, even if an earlier one is missing; -1 if there is none."""
        found = (path.parent.name.removeprefix("cycle-") for path in self.path.glob("cycle-*/record.json"))
        return max((int(number) for number in found if number.isdecimal()), default=-1)

    def particle(self, cycle: int, index: int) -> Path:
        """A finished particle."""
        return self.cycle(cycle) / f"particle-{index}.safetensors"

    def trajectory(self, cycle: int, index: int) -> Path:
        """The trajectory of a particle in training."""
        return self.cycle(cycle) / f"trajectory-{index}.safetensors"

    def snapshot(self, cycle: int | None, index: int) -> Path:
        """A training in progress (cycle None: the ticket's; index TRUNK: that of a trunk)."""
        name = "trunk" if index == TRUNK else index
        return (self.path if cycle is None else self.cycle(cycle)) / f"unfinished-{name}.safetensors"

    def trunk(self, cycle: int) -> Path:
        """The finished trunk of a cycle's particles."""
        return self.cycle(cycle) / "trunk.safetensors"

    def phase(self, cycle: int) -> Path:
        """All particles of a cycle with dynamic masks, as they were after a mask update."""
        return self.cycle(cycle) / "unfinished.safetensors"

    def member(self, index: int) -> "RunDirectory":
        """The run of one member of an ensemble."""
        return self.below(f"member-{index}")

    def below(self, folder: str) -> "RunDirectory":
        """A directory of the same run inside this one."""
        return replace(self, path=self.path / folder, folder=PurePosixPath(self.folder, folder).as_posix())

    def provenance(self, path: Path) -> dict[str, str]:
        """The run and the relative path that the file `path` states."""
        relative = PurePosixPath(self.folder, path.relative_to(self.path)).as_posix()
        return {"run": self.run, "path": relative} if self.run else {"path": relative}

    def write(self, path: Path, value: Mapping[str, Any]) -> None:
        """Write `value` as JSON with its provenance, atomically."""
        write_json(path, add_checksum(value, self.provenance(path)))

    def read(self, path: Path) -> dict[str, Any]:
        """Read what `write` wrote. Raises CorruptFile for anything else."""
        return self.verify(read_json(path), str(path), path)

    def verify(self, value: Any, where: str, path: Path) -> dict[str, Any]:
        """Values from the file `path` without their provenance, which is checked; `where` names them in errors."""
        plain, provenance = verify_checksum(value, where)
        verify_owner(where, provenance, self.provenance(path))
        return plain

    def verify_owner(self, path: Path) -> None:
        """Raise CorruptFile unless the safetensors file `path` was written for this run and relative path."""
        verify_owner(str(path), load_metadata(path), self.provenance(path))

    def load(self, path: Path, read: Callable[[Path], _T]) -> _T:
        """`read(path)`. Raises CorruptFile unless the safetensors file was written for this run and relative path."""
        found = read(path)
        self.verify_owner(path)
        return found

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep every other process out of this run. The system releases the lock of a process that dies.

        Raises RunLocked if another process has the lock, and SwampError for a directory that cannot be written.
        """
        with lock_file(self.path / "lock", "the run directory") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = os.pread(handle, 128, 0).decode(errors="replace").strip() or "unknown"
                raise RunLocked(
                    f"{self.path} is being written by process {owner}. Wait for it, stop it, or take another folder."
                ) from error
            sign(handle, f"{os.getpid()} on {socket.gethostname()}\n")
            remove_unfinished(self.path)
            yield


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. Numbers that are not finite become null."""
    write_atomic(path, (json.dumps(replace_nonfinite(value), indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON. Raises CorruptFile, naming the file, if it is missing or incomplete."""
    try:
        return parse_json(read_text(path))
    except PermissionError as error:
        raise SwampError(f"no permission to read {path} ({error.strerror}); ask its owner for it.") from error
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path} is damaged or unreadable ({error}). Restore it from a copy.") from error


def add_checksum(value: Mapping[str, Any], provenance: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Plain values with `provenance` (run and path), the format, and a checksum over all of it. NaN becomes None."""
    # As JSON returns them: keys are strings, and tuples are lists.
    plain: dict[str, Any] = json.loads(json.dumps(replace_nonfinite(dict(value))))
    stated: dict[str, Any] = {"format": FORMAT, **(provenance or {})}
    return {**plain, PROVENANCE: {**stated, "checksum": _checksum(plain, stated)}}


def verify_checksum(value: Any, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values, and their provenance.

    Raises CorruptFile for anything but an object with a matching checksum, SwampError for a newer format.
    """
    if not isinstance(value, dict):
        raise CorruptFile(
            f"{where} is damaged: it holds {type(value).__name__}, not an object. Restore it from a copy."
        )
    plain = dict(cast("dict[str, Any]", value))
    found = plain.pop(PROVENANCE, None)
    provenance: dict[str, Any] = dict(cast("dict[str, Any]", found)) if isinstance(found, dict) else {}
    version = provenance.get("format")
    # First: another format may have another checksum.
    if isinstance(version, int) and version > FORMAT:
        raise newer(where, f"format {version}, this one reads up to {FORMAT}")
    if provenance.pop("checksum", None) != _checksum(plain, provenance):
        raise CorruptFile(f"{where} is damaged: it does not match its checksum. Restore it from a copy.")
    return plain, provenance


def verify_owner(where: str, found: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    """Raise CorruptFile unless the provenance `found` in a file has the run and the path that are expected."""
    for name, value in expected.items():
        stated = found.get(name)
        if stated is None:
            raise CorruptFile(f"{where} is not a file of a run: the entry {name!r} is missing. Restore it from a copy.")
        if stated != value:
            raise CorruptFile(
                f"{where} belongs to another run ({stated}, this one is {value})."
                if name == "run"
                else f"{where} is {stated} of its run, moved or copied to another path."
            )


def replace_nonfinite(value: Any) -> Any:
    """The same plain values as JSON returns them: keys are text, and numbers that are not finite are None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): replace_nonfinite(inner) for key, inner in cast("dict[object, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(inner) for inner in cast("list[Any]", value)]
    return value


def _checksum(plain: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    text = json.dumps({**plain, PROVENANCE: provenance}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
