"""The run directory: which file lies where, and who may write."""

import fcntl
import json
import os
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from swamp.errors import CorruptFile, RunLocked, SwampError
from swamp.files import load_metadata, make_folder, parse_json, read_text, remove_unfinished, sign, write_atomic
from swamp.runs.seal import finite, require_own, sealed, unsealed


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run. What lies in it is enough to go on; nothing else is."""

    path: Path
    run: str = ""
    """Fingerprint of the run, by which its files say whose they are; empty: nobody asks them."""
    folder: str = ""
    """Where `path` lies below the run's own directory: a member's folder, or nothing."""
    strict: bool = False
    """Whether every file must say whose it is: in runs begun before format 2 they do not."""

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

    @property
    def broken(self) -> Path:
        """Trainings that broke, and what became of them."""
        return self.path / "broken.json"

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

    @property
    def last(self) -> int:
        """The last cycle that is finished, whether or not all before it are; -1 where none is."""
        found = (path.parent.name.removeprefix("cycle-") for path in self.path.glob("cycle-*/record.json"))
        return max((int(number) for number in found if number.isdecimal()), default=-1)

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
        return self.below(f"member-{index}")

    def below(self, folder: str) -> "RunDirectory":
        """A directory of the same run inside this one."""
        return replace(self, path=self.path / folder, folder=PurePosixPath(self.folder, folder).as_posix())

    def about(self, path: Path) -> dict[str, str]:
        """What the file `path` says of itself: its run, and its place there."""
        place = PurePosixPath(self.folder, path.relative_to(self.path)).as_posix()
        return {"run": self.run, "place": place} if self.run else {"place": place}

    def write(self, path: Path, value: Mapping[str, Any]) -> None:
        """Write `value` as JSON with a seal, atomically."""
        write_json(path, sealed(value, self.about(path)))

    def read(self, path: Path) -> dict[str, Any]:
        """Read what `write` wrote, or an older version did. Raises CorruptFile for anything else."""
        return self.unsealed(read_json(path), str(path), path)

    def unsealed(self, value: Any, where: str, path: Path) -> dict[str, Any]:
        """Values that belong to the file `path`, checked; `where` names them in errors."""
        plain, seal = unsealed(value, where)
        require_own(where, seal, self.about(path), strict=self.strict)
        return plain

    def require_own(self, path: Path) -> None:
        """Raise CorruptFile unless the file of tensors in `path` was written for this run and place."""
        require_own(str(path), load_metadata(path), self.about(path), strict=self.strict)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep every other process out of this run; the system lifts the lock of a process that dies.

        Raises RunLocked where another process is in, and SwampError for a directory that cannot be written.
        """
        try:
            make_folder(self.path)
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SwampError(f"cannot write to the run directory {self.path}: {error.strerror}.") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = os.pread(handle, 128, 0).decode(errors="replace").strip() or "unknown"
                raise RunLocked(
                    f"{self.path} is being written by process {owner}. Wait for it, stop it, or choose another --out."
                ) from error
            sign(handle, f"{os.getpid()} on {socket.gethostname()}\n")
            remove_unfinished(self.path)
            yield
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. NaN becomes null, as JSON knows no other."""
    write_atomic(path, (json.dumps(finite(value), indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON. Raises CorruptFile, naming the file, where it is not whole."""
    try:
        return parse_json(read_text(path))
    except PermissionError as error:
        raise SwampError(f"{path} may not be read ({error.strerror}); ask its owner for the right to.") from error
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path} is damaged or unreadable ({error}). Restore it from a copy.") from error
