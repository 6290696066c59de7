"""Paths of particles: their weights every so many steps, as compact as they are exact."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swamp.errors import CorruptFile
from swamp.files import load_tensors, require_format, save_tensors
from swamp.runs.directory import RunDirectory
from swamp.training import State

_FORMAT = "swamp-path-1"
_MOST_BYTES = 2**26
"""Of points that wait in memory to be written."""


@dataclass(eq=False)
class PathWriter:
    """Takes the points of one particle, and writes them when it is told to.

    Points wait in memory and are written as a part of their own, beside the parts of before, and never once more until
    the particle is finished; then all parts become one file. A run that was killed takes the points after its snapshot
    again: they come out the same, and replace those that are there.
    """

    path: Path
    """Of the whole: cycle-03/path-0.safetensors. Parts are path-0.part-STEP.safetensors."""
    directory: RunDirectory | None = None
    """The run's, if it is kept in one: files say where they belong."""
    waiting: dict[int, State] = field(default_factory=dict[int, State])
    size: int = 0

    def add(self, step: int, weights: State) -> None:
        """Take the weights after `step` steps; they must not change afterwards."""
        kept = {name: value for name, value in weights.items() if _belongs(name, value)}
        self.waiting[step] = kept
        self.size += sum(value.numel() * value.element_size() for value in kept.values())
        if self.size > _MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self.waiting:
            part = self.path.with_name(f"{self.path.stem}.part-{max(self.waiting):08d}{self.path.suffix}")
            _write(part, self.waiting, self._about(part))
        self.waiting, self.size = {}, 0

    def finish(self) -> None:
        """Make one file of all parts, this one's and those of interrupted sessions."""
        parts = _parts(self.path)
        if parts or self.waiting:
            points = {**read_path(self.path, self.directory), **self.waiting}
            _write(self.path, points, self._about(self.path))
        for part in parts:
            part.unlink(missing_ok=True)
        self.waiting, self.size = {}, 0

    def forget(self) -> None:
        """Remove all that was written of a path that is taken anew."""
        for part in (self.path, *_parts(self.path)):
            part.unlink(missing_ok=True)

    def _about(self, file: Path) -> dict[str, str]:
        return self.directory.provenance(file) if self.directory else {}


def read_path(path: Path, directory: RunDirectory | None = None) -> dict[int, dict[str, Tensor]]:
    """Step -> parameters, by step, of a path that is finished or still being written; empty where there is none.

    Exactly the weights that training had, but for normalisation statistics and integers, which are left out.
    directory: the run's; its files must say that they belong there. Raises CorruptFile for a damaged file.
    """
    points: dict[int, dict[str, Tensor]] = {}
    for file in path_files(path):
        if directory:
            directory.verify_owner(file)
        points.update(_read(file))
    return dict(sorted(points.items()))


def path_files(path: Path) -> list[Path]:
    """The files that a path is in, while it is written and afterwards."""
    return [file for file in (path, *_parts(path)) if file.exists()]


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.part-*{path.suffix}"))


def _belongs(name: str, value: Tensor) -> bool:
    return value.is_floating_point() and not name.endswith(("running_mean", "running_var"))


def _write(path: Path, points: Mapping[int, State], about: Mapping[str, str]) -> None:
    """Of each tensor where it is ever other than zero (a bit each), and its values there: (point, weight)."""
    steps = sorted(points)
    tensors: dict[str, Tensor] = {"steps": torch.tensor(steps)}
    for name, first in points[steps[0]].items():
        rows = torch.stack([points[step][name].detach().cpu().reshape(-1) for step in steps])
        alive = (rows != 0).any(0)
        tensors[f"alive/{name}"] = torch.from_numpy(np.packbits(alive.numpy()))  # pyright: ignore[reportUnknownMemberType]
        tensors[f"shape/{name}"] = torch.tensor(first.shape, dtype=torch.int64)
        tensors[f"values/{name}"] = rows[:, alive]
    save_tensors(path, tensors, {**about, "format": _FORMAT})


def _read(file: Path) -> dict[int, dict[str, Tensor]]:
    tensors, metadata = load_tensors(file)
    require_format(file, metadata, _FORMAT, "a particle's path")
    try:
        numbers = [int(step) for step in tensors["steps"]]
        names = [key.removeprefix("values/") for key in tensors if key.startswith("values/")]
        whole = {name: _dense(tensors, name) for name in names}
        return {step: {name: whole[name][row] for name in names} for row, step in enumerate(numbers)}
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise CorruptFile(f"{file} is damaged: its parts do not fit together ({error}). Delete it.") from error


def _dense(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """(point, ...) with the zeros that were left out."""
    values = tensors[f"values/{name}"]
    shape = [int(length) for length in tensors[f"shape/{name}"]]
    size = math.prod(shape)
    if not 0 <= size <= 8 * tensors[f"alive/{name}"].numel():
        raise ValueError(f"{name} has not a bit for each of {size} weights")
    bits = np.unpackbits(tensors[f"alive/{name}"].numpy(), count=size).astype(bool)
    rows = torch.zeros(len(values), size, dtype=values.dtype)
    rows[:, torch.from_numpy(bits)] = values  # pyright: ignore[reportUnknownMemberType]
    return rows.reshape(-1, *shape)
