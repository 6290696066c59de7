"""Trainings in progress as safetensors files: of one particle, or of all of a cycle whose masks change."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from swamp.errors import SwampError
from swamp.files import digest, load_tensors, parse_json, save_tensors
from swamp.methods import Phase
from swamp.sparsity import Mask
from swamp.training import Snapshot

T = TypeVar("T")
_PARTS = ("weights", "optimizer", "mean", "gradient")


def save_snapshot(path: Path, snapshot: Snapshot, run: str) -> None:
    """Write a snapshot; `run` is the fingerprint of the run it belongs to."""
    tensors, numbers = _flat(snapshot)
    _save(path, "swamp-snapshot-1", run, tensors, numbers)


def load_snapshot(path: Path, run: str) -> Snapshot | None:
    """Read a snapshot; None where there is none. Raises SwampError for a damaged file or one of another run."""
    found = _load(path, "swamp-snapshot-1", run)
    return None if found is None else _whole(path, lambda: _snapshot(*found))


def save_phase(path: Path, phase: Phase, run: str) -> None:
    """Write all particles of a cycle whose masks change, as they stand after a change."""
    tensors = {f"mean/{name}": value for name, value in phase.mean.items()}
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
        "operations": phase.operations,
        "seconds": phase.seconds,
        "particles": numbers,
    }
    _save(path, "swamp-phase-1", run, tensors, whole)


def load_phase(path: Path, run: str) -> Phase | None:
    """Read what `save_phase` wrote; None where there is nothing. Raises SwampError as `load_snapshot` does."""
    found = _load(path, "swamp-phase-1", run)
    if found is None:
        return None
    tensors, numbers = found
    return _whole(path, lambda: _phase(tensors, numbers))


def _phase(tensors: Mapping[str, Tensor], numbers: Any) -> Phase:
    return Phase(
        numbers["step"],
        tuple(Mask(_below(tensors, f"mask/{i}/")) for i in range(numbers["masks"])),
        tuple(_snapshot(_below(tensors, f"particle/{i}/"), own) for i, own in enumerate(numbers["particles"])),
        _below(tensors, "mean/"),
        numbers["averaged"],
        numbers["operations"],
        numbers["seconds"],
    )


def _whole(path: Path, build: Callable[[], T]) -> T:
    try:
        return build()
    except (KeyError, TypeError, ValueError) as error:
        raise SwampError(
            f"{path} is damaged ({error}). Delete it and resume: what it held is trained again."
        ) from error


def _flat(snapshot: Snapshot) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    for part in _PARTS:
        tensors.update({f"{part}/{name}": value for name, value in getattr(snapshot, part).items()})
    return tensors, {
        "step": snapshot.step,
        "averaged": snapshot.averaged,
        "losses": snapshot.losses,
        "running_loss": snapshot.running_loss,
        "losses_seen": snapshot.losses_seen,
    }


def _snapshot(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Snapshot:
    return Snapshot(
        numbers["step"],
        _below(tensors, "weights/"),
        _below(tensors, "optimizer/"),
        _below(tensors, "mean/"),
        numbers["averaged"],
        tuple(numbers["losses"]),
        numbers["running_loss"],
        numbers["losses_seen"],
        _below(tensors, "gradient/"),
    )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _save(path: Path, kind: str, run: str, tensors: Mapping[str, Tensor], numbers: Any) -> None:
    metadata = {"format": kind, "run": run, "numbers": json.dumps(numbers), "digest": digest(tensors)}
    save_tensors(path, tensors, metadata)


def _load(path: Path, kind: str, run: str) -> tuple[dict[str, Tensor], Any] | None:
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != kind or digest(tensors) != metadata.get("digest"):
        raise SwampError(f"{path} is damaged. Delete it and resume: what it held is trained again.")
    if metadata.get("run") != run:
        raise SwampError(f"{path} belongs to another run. Delete it and resume.")
    try:
        return tensors, parse_json(metadata["numbers"])
    except (KeyError, ValueError) as error:
        raise SwampError(
            f"{path} is damaged ({error}). Delete it and resume: what it held is trained again."
        ) from error
