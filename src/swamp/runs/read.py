"""What lies in a run directory, read back and checked: nothing is taken that is not what the run has written there."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

from swamp.algorithms import Cycle
from swamp.backends import Particle, Ticket
from swamp.errors import CorruptFile, SwampError
from swamp.files import digest, load_tensors, set_aside
from swamp.masks import Mask
from swamp.runs.config import RunConfig, differences
from swamp.runs.directory import RunDirectory, read_json
from swamp.runs.seal import unsealed

T = TypeVar("T")


def open_run(path: Path | str) -> tuple[RunDirectory, RunConfig]:
    """A run that was begun, by its directory.

    Raises SwampError where there is none, where config.json is not what the run began with, or where a later version
    of swamp wrote it; CorruptFile where one of the two configurations is.
    """
    directory = RunDirectory(Path(path))
    if not directory.config.exists():
        if directory.original.exists():
            raise CorruptFile(f"{directory.config} is missing. To write it again: swamp resume {path}")
        raise SwampError(
            f"{path} holds no run: there is no {directory.config.name} in it. Give the directory of a run, or start "
            "one with swamp run."
        )
    began, seal = _original(directory)
    config = RunConfig.load(directory.config)
    changed = differences(began, config) if began else []
    if changed:
        raise SwampError(
            f"{directory.config} was changed since this run began ({'; '.join(changed)}; what it began with is in "
            f"{directory.original.name}). Put it back, or start another run with: swamp run --config "
            f"{directory.config} --out NEW"
        )
    # As it was when the run began: another version may have other defaults, and with them another fingerprint.
    return RunDirectory(Path(path), str(seal.get("run") or config.digest()), strict="run" in seal), config


def read_original(directory: RunDirectory) -> RunConfig:
    """The configuration that the run began with. Raises CorruptFile where it is missing or not whole."""
    began, _ = _original(directory)
    if began is None:
        raise CorruptFile(f"{directory.original} is missing.{_to_do(directory)}")
    return began


def _original(directory: RunDirectory) -> tuple[RunConfig | None, dict[str, Any]]:
    path = directory.original
    if not path.exists():
        return None, {}
    try:
        values, seal = unsealed(read_json(path), str(path))
    except CorruptFile as error:
        raise CorruptFile(f"{error}{_to_do(directory)}") from error
    try:
        return RunConfig.from_json(values), seal
    except SwampError as error:
        raise CorruptFile(f"{path} is damaged: {error}{_to_do(directory)}") from error


def _to_do(directory: RunDirectory) -> str:
    return (
        f" It says what the run began with. If {directory.config.name} is as it was then, put a copy of it there: "
        f"cp {directory.config} {directory.original}"
    )


def read_sessions(directory: RunDirectory) -> list[dict[str, Any]]:
    """What the run ran on, session by session."""
    path = directory.environment
    found = read_json(path)
    if not isinstance(found, list):
        raise CorruptFile(f"{path} is damaged: it holds {type(found).__name__}, not a list. Restore it from a copy.")
    sessions = cast("list[Any]", found)
    return [directory.unsealed(one, f"{path}, session {number}", path) for number, one in enumerate(sessions, 1)]


def read_record(directory: RunDirectory, index: int) -> dict[str, Any]:
    """The record of a finished cycle."""
    path = directory.record(index)
    line = directory.read(path)
    if line.get("cycle") != index:
        raise CorruptFile(f"{path} is damaged: it is the record of cycle {line.get('cycle')}. Restore it from a copy.")
    if not isinstance(line.get("digest"), dict):
        raise CorruptFile(f"{path} is damaged: it has no digest of weights and mask. Restore it from a copy.")
    return line if "total" in line else {**line, "total": _total(directory, index)}


def _total(directory: RunDirectory, index: int) -> dict[str, float]:
    """What a model cost with all cycles before it, which the first records did not say: all methods needed them."""
    lines = [directory.read(directory.record(earlier)) for earlier in range(index + 1)]
    try:
        return {name: sum(line[name] for line in lines) for name in ("steps", "samples", "seconds")}
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{directory.record(index)} is damaged: it does not say what it took ({error!r}).") from error


def read_mask(directory: RunDirectory, index: int) -> Mask:
    """The mask of a finished cycle."""
    return _mask_of(directory, index, read_record(directory, index))


def _mask_of(directory: RunDirectory, index: int, line: dict[str, Any]) -> Mask:
    path = directory.cycle(index) / "mask.safetensors"
    mask = Mask.load(path)
    _require(path, mask.digest, line["digest"].get("mask"))
    return mask


def read_weights(directory: RunDirectory, index: int) -> dict[str, Tensor]:
    """The weights of a finished cycle's model."""
    return _weights_of(directory, index, read_record(directory, index))


def _weights_of(directory: RunDirectory, index: int, line: dict[str, Any]) -> dict[str, Tensor]:
    path = directory.cycle(index) / "mean.safetensors"
    weights, _ = load_tensors(path)
    _require(path, digest(weights), line["digest"].get("weights"))
    return weights


def read_cycle(directory: RunDirectory, index: int) -> Cycle:
    """A finished cycle: its record, mask and weights. Raises CorruptFile, naming the file that is."""
    line = read_record(directory, index)
    mask, weights = _mask_of(directory, index, line), _weights_of(directory, index, line)
    try:
        return Cycle.from_json(line, mask, weights)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile(f"{directory.record(index)} is damaged: it is not whole ({error!r}).") from error


def read_particle(directory: RunDirectory, cycle: int, index: int) -> Particle:
    """A particle that was kept."""
    path = directory.particle(cycle, index)
    particle = Particle.load(path)
    directory.require_own(path)
    if particle.index != index:
        raise CorruptFile(f"{path} is particle {particle.index} of its cycle, which was moved or copied here.")
    return particle


def read_ticket(directory: RunDirectory) -> Ticket:
    """The ticket."""
    ticket = Ticket.load(directory.ticket)
    directory.require_own(directory.ticket)
    return ticket


def _require(path: Path, found: str, expected: object) -> None:
    if found != expected:
        raise CorruptFile(f"{path} is not the file its record was written with. Restore it from a copy.")


def unless_damaged(paths: Sequence[Path], read: Callable[[], T], again: str) -> T | None:
    """What was kept in the first of `paths`, if it is there.

    Where it is damaged, all of them get other names, and a warning says so and what comes of it (`again`).
    """
    if not paths[0].exists():
        return None
    try:
        return read()
    except CorruptFile as error:
        kept = [str(set_aside(path)) for path in paths if path.exists()]
        warnings.warn(f"{error} {again} (Kept as {', '.join(kept)}.)", stacklevel=3)
        return None
