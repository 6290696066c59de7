"""Trajectories of particles: exact weights at regular steps, stored without the zeros."""

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
from swamp.training.average import State, is_inexact

_FORMAT = "swamp-trajectory-1"
_MAX_BYTES = 2**26
"""Most bytes of points that are kept in memory before they are written."""


@dataclass(eq=False)
class TrajectoryWriter:
    """Collects the points of one particle's trajectory and writes them.

    Points are kept in memory until `flush` writes them to a new part file. `finish` joins all parts in one file. A run
    that was killed repeats the steps after its last snapshot: it gets the same points, which replace the earlier ones.
    """

    path: Path
    """The whole trajectory: cycle-03/trajectory-0.safetensors. Parts are trajectory-0.part-STEP.safetensors."""
    directory: RunDirectory | None = None
    """The run directory, if there is one: the files state their provenance."""
    waiting: dict[int, State] = field(default_factory=dict[int, State])
    """Points that are not yet written, by step."""
    size: int = 0
    """Bytes of `waiting`."""

    def add(self, step: int, weights: State) -> None:
        """Add the weights after `step` steps; the caller must not change them afterwards."""
        kept = {name: value for name, value in weights.items() if _is_parameter(name, value)}
        self.waiting[step] = kept
        self.size += sum(value.numel() * value.element_size() for value in kept.values())
        if self.size > _MAX_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the points in memory to a part file."""
        if self.waiting:
            part = self.path.with_name(f"{self.path.stem}.part-{max(self.waiting):08d}{self.path.suffix}")
            _write(part, self.waiting, self._provenance(part))
        self.waiting, self.size = {}, 0

    def finish(self) -> None:
        """Join all parts, also those of interrupted sessions, in one file."""
        parts = _parts(self.path)
        if parts or self.waiting:
            points = {**read_trajectory(self.path, self.directory), **self.waiting}
            _write(self.path, points, self._provenance(self.path))
        for part in parts:
            part.unlink(missing_ok=True)
        self.waiting, self.size = {}, 0

    def delete(self) -> None:
        """Delete all files of a trajectory that starts again."""
        for part in (self.path, *_parts(self.path)):
            part.unlink(missing_ok=True)

    def _provenance(self, file: Path) -> dict[str, str]:
        return self.directory.provenance(file) if self.directory else {}


def read_trajectory(path: Path, directory: RunDirectory | None = None) -> dict[int, dict[str, Tensor]]:
    """Read a trajectory, finished or still being written.

    Args:
        path: the file of the whole trajectory; parts are next to it.
        directory: the run directory to which the files must belong; None: files of any run are read.

    Returns:
        Step -> parameters, in order of steps; empty if there is no such trajectory. The weights are exactly those in
        training. Running statistics of normalisation and integers are not stored.

    Raises:
        CorruptFile: a file is damaged, or belongs to another run.
    """
    points: dict[int, dict[str, Tensor]] = {}
    for file in trajectory_files(path):
        if directory:
            directory.verify_owner(file)
        points.update(_read(file))
    return dict(sorted(points.items()))


def trajectory_files(path: Path) -> list[Path]:
    """The existing files of a trajectory: the whole, and parts."""
    return [file for file in (path, *_parts(path)) if file.exists()]


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.part-*{path.suffix}"))


def _is_parameter(name: str, value: Tensor) -> bool:
    return is_inexact(value) and not name.endswith(("running_mean", "running_var"))


def _write(path: Path, points: Mapping[int, State], about: Mapping[str, str]) -> None:
    """Write points without their zeros.

    For each tensor: one bit per weight, set if the weight is not zero at any point, and the values (point, weight) of
    the weights whose bit is set.
    """
    steps = sorted(points)
    tensors: dict[str, Tensor] = {"steps": torch.tensor(steps)}
    for name, first in points[steps[0]].items():
        rows = torch.stack([points[step][name].detach().cpu().reshape(-1) for step in steps])
        active = (rows != 0).any(0)
        tensors[f"active/{name}"] = torch.from_numpy(np.packbits(active.numpy()))  # pyright: ignore[reportUnknownMemberType]
        tensors[f"shape/{name}"] = torch.tensor(first.shape, dtype=torch.int64)
        tensors[f"values/{name}"] = rows[:, active]
    save_tensors(path, tensors, {**about, "format": _FORMAT})


def _read(file: Path) -> dict[int, dict[str, Tensor]]:
    tensors, metadata = load_tensors(file)
    require_format(file, metadata, _FORMAT, "a trajectory")
    try:
        numbers = [int(step) for step in tensors["steps"]]
        names = [key.removeprefix("values/") for key in tensors if key.startswith("values/")]
        whole = {name: _dense(tensors, name) for name in names}
        return {step: {name: whole[name][row] for name in names} for row, step in enumerate(numbers)}
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise CorruptFile(f"{file} is damaged: its tensors do not match each other ({error}). Delete it.") from error


def _dense(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor (point, ...) with its zeros."""
    values = tensors[f"values/{name}"]
    shape = [int(length) for length in tensors[f"shape/{name}"]]
    size = math.prod(shape)
    if not 0 <= size <= 8 * tensors[f"active/{name}"].numel():
        raise ValueError(f"{name} needs one bit for each of {size} weights")
    bits = np.unpackbits(tensors[f"active/{name}"].numpy(), count=size).astype(bool)
    rows = torch.zeros(len(values), size, dtype=values.dtype)
    rows[:, torch.from_numpy(bits)] = values  # pyright: ignore[reportUnknownMemberType]
    return rows.reshape(-1, *shape)
