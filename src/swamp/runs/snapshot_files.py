"""Snapshots of training as safetensors files: a particle, a trunk, all particles of a cycle with dynamic masks."""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from swamp.algorithms.store import Phase
from swamp.backends.extra_state import with_state, without_state
from swamp.backends.ticket import Trunk
from swamp.errors import CorruptFile
from swamp.files import load_metadata, load_tensors, parse_json, require_format, save_tensors
from swamp.masks import Mask
from swamp.training.snapshot import Snapshot

_T = TypeVar("_T")
_PARTS = ("weights", "optimizer", "mean", "gradient", "anchor")
_NUMBERS = ("step", "averaged", "losses", "running_loss", "losses_seen")


def save_snapshot(path: Path, snapshot: Snapshot, provenance: Mapping[str, str]) -> None:
    """Write a snapshot. provenance: its run and relative path."""
    tensors, numbers = _flat(snapshot)
    _save(path, "swamp-snapshot-1", provenance, tensors, numbers)


def load_snapshot(path: Path) -> Snapshot:
    """Read a snapshot. Raises CorruptFile for a damaged file."""
    tensors, numbers = _load(path, "swamp-snapshot-1")
    with _complete(path):
        return _snapshot(tensors, numbers)


def save_trunk(path: Path, trunk: Trunk, provenance: Mapping[str, str]) -> None:
    """Write a trunk. provenance: its run and relative path."""
    tensors, numbers = _flat(trunk.snapshot)
    stored, metadata = with_state(tensors, provenance, trunk.state)
    _save(path, "swamp-trunk-1", metadata, stored, {**numbers, "seconds": trunk.seconds})


def load_trunk(path: Path) -> Trunk:
    """Read a trunk. Raises CorruptFile as `load_snapshot` does."""
    stored, numbers = _load(path, "swamp-trunk-1")
    tensors, state = without_state(stored, load_metadata(path), path)
    with _complete(path):
        return Trunk(_snapshot(tensors, numbers), state, numbers["seconds"])


def save_phase(path: Path, phase: Phase, provenance: Mapping[str, str]) -> None:
    """Write all particles of a cycle with dynamic masks, as they are after a mask update."""
    tensors = {f"mean/{name}": value for name, value in phase.mean.items()}
    tensors.update((f"dual/{name}", value) for name, value in phase.dual.items())
    numbers: list[Any] = []
    for i, mask in enumerate(phase.masks):
        tensors.update((f"mask/{i}/{name}", alive) for name, alive in mask.items())
    for i, snapshot in enumerate(phase.snapshots):
        flat, own = _flat(snapshot)
        tensors.update((f"particle/{i}/{name}", value) for name, value in flat.items())
        numbers.append(own)
    whole = {
        "step": phase.step,
        "masks": len(phase.masks),
        "averaged": phase.averaged,
        "flops": phase.flops,
        "seconds": phase.seconds,
        "particles": numbers,
    }
    _save(path, "swamp-phase-1", provenance, tensors, whole)


def load_phase(path: Path) -> Phase:
    """Read what `save_phase` wrote. Raises CorruptFile as `load_snapshot` does."""
    tensors, numbers = _load(path, "swamp-phase-1")
    with _complete(path):
        return Phase(
            numbers["step"],
            tuple(Mask(_below(tensors, f"mask/{i}/")) for i in range(numbers["masks"])),
            tuple(_snapshot(_below(tensors, f"particle/{i}/"), own) for i, own in enumerate(numbers["particles"])),
            _below(tensors, "mean/"),
            numbers["averaged"],
            numbers["flops"],
            numbers["seconds"],
            _below(tensors, "dual/"),
        )


def _flat(snapshot: Snapshot) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    for part in _PARTS:
        tensors.update({f"{part}/{name}": value for name, value in getattr(snapshot, part).items()})
    return tensors, {name: getattr(snapshot, name) for name in _NUMBERS}


def _snapshot(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Snapshot:
    parts: dict[str, Any] = {part: _below(tensors, f"{part}/") for part in _PARTS}
    own: dict[str, Any] = {name: numbers[name] for name in _NUMBERS}
    own["losses"] = tuple(own["losses"])
    return Snapshot(**parts, **own)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _save(path: Path, kind: str, provenance: Mapping[str, str], tensors: Mapping[str, Tensor], numbers: Any) -> None:
    save_tensors(path, tensors, {**provenance, "format": kind, "numbers": json.dumps(numbers)})


def _load(path: Path, kind: str) -> tuple[dict[str, Tensor], Any]:
    tensors, metadata = load_tensors(path)
    require_format(path, metadata, kind, "a snapshot of a training")
    with _complete(path):
        return tensors, parse_json(metadata["numbers"])


@contextmanager
def _complete(path: Path) -> Generator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{path} is damaged: its metadata is incomplete ({error!r}).") from error
