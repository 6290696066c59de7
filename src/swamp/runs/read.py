"""Read what a run directory holds. Every file is checked: damaged and foreign files raise CorruptFile."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar, cast

from torch import Tensor

from swamp.algorithms import Cycle
from swamp.backends import Particle, Ticket
from swamp.backends.autotune import Choice
from swamp.errors import CorruptFile, SwampError, warn
from swamp.files import digest, load_metadata, load_tensors, quarantine
from swamp.masks import Mask
from swamp.runs.config import ORIGIN, RunConfig, result_settings
from swamp.runs.directory import PROVENANCE, RunDirectory, add_checksum, read_json, verify_checksum, write_json

_T = TypeVar("_T")
TOLERANCE = 0.005
"""Relative difference up to which two densities count as equal."""


def write_config(directory: RunDirectory, config: RunConfig, origin: Mapping[str, Any] | None = None) -> None:
    """Write config.json, the first file of a run. Its checksum covers the settings that decide the result.

    origin: what the model, task and optimizer were, where they are not chosen by name from those of swamp.
    """
    values = config.to_json() | ({ORIGIN: dict(origin)} if origin else {})
    signed = add_checksum(result_settings(values), directory.provenance(directory.config))
    write_json(directory.config, {**values, PROVENANCE: signed[PROVENANCE]})


def write_backend(directory: RunDirectory, name: str) -> None:
    """Replace the backend `auto` in config.json, if there is one; its checksum does not cover the backend."""
    if directory.config.exists():
        values: Any = read_json(directory.config)
        if values.get("backend") == "auto":
            write_json(directory.config, {**values, "backend": name})


def open_run(path: Path | str) -> tuple[RunDirectory, RunConfig]:
    """The directory and configuration of a run.

    Raises SwampError if there is no run, or a newer version of swamp wrote it; CorruptFile if config.json was changed
    since the run began.
    """
    directory = RunDirectory(Path(path))
    file = directory.config
    if not file.exists():
        raise SwampError(
            f"{path} holds no run: it has no {file.name}. Give the directory of a run, or start one with swamp run."
        )
    values = read_json(file)
    if not isinstance(values, dict) or PROVENANCE not in values:
        raise CorruptFile(f"{file} is not the configuration that a run began with: it has no {PROVENANCE!r}.")
    settings = result_settings(cast("dict[str, Any]", values))
    try:
        _, provenance = verify_checksum({**settings, PROVENANCE: values[PROVENANCE]}, str(file))
    except CorruptFile as error:
        raise CorruptFile(
            f"{file} was changed since this run began, or is damaged: its settings do not match their checksum. Put it "
            f"back, or start another run with: swamp run --config {quote(str(file))} --out NEW"
        ) from error
    # Not config.digest(): other defaults in another version of swamp would give another fingerprint.
    return RunDirectory(Path(path), str(provenance.get("run"))), RunConfig.load(file)


def open_with_cycles(path: Path | str) -> tuple[RunDirectory, RunConfig]:
    """Open a run directory.

    Raises:
        SwampError: there is no run, or no finished cycle.
        CorruptFile: the record of a finished cycle is missing.
    """
    directory, config = open_run(path)
    logged = directory.metrics.read_bytes().count(b"\n") if directory.metrics.is_file() else 0
    if directory.finished < max(directory.last + 1, logged):
        raise CorruptFile(
            f"{directory.record(directory.finished)} is missing. To create it again: swamp resume {quote(str(path))}"
        )
    if not directory.finished:
        raise SwampError(f"{path} has no finished cycle yet. Wait for the first one, or continue the run.")
    return directory, config


def read_origin(directory: RunDirectory) -> dict[str, Any]:
    """The origin that `write_config` wrote; empty where there is none. `open_run` checks it."""
    return read_json(directory.config).get(ORIGIN, {})


def verify_config_owner(directory: RunDirectory) -> None:
    """Raise SwampError if config.json is of another run than all other files of the directory."""
    others = [path for path in (directory.ticket, directory.record(0), directory.environment) if path.exists()]
    owners = {owner for path in others if (owner := _owner(path))}
    if owners and directory.run not in owners:
        raise SwampError(
            f"{directory.config} belongs to run {directory.run}, and {', '.join(path.name for path in others)} to run "
            f"{', '.join(owners)}. Put back the configuration that this run began with."
        )


def _owner(path: Path) -> str:
    """The run that a file states; empty where it cannot be read."""
    try:
        if path.suffix == ".safetensors":
            return load_metadata(path).get("run", "")
        found: Any = read_json(path)
        return str((found[-1] if path.name == "environment.json" else found)[PROVENANCE]["run"])
    except (SwampError, LookupError, TypeError):
        return ""


def read_sessions(directory: RunDirectory) -> list[dict[str, Any]]:
    """The environment of each session that worked on the run, in order."""
    path = directory.environment
    found = read_json(path)
    if not isinstance(found, list):
        raise CorruptFile(f"{path} is damaged: it holds {type(found).__name__}, not a list. Restore it from a copy.")
    sessions = cast("list[Any]", found)
    return [directory.verify(one, f"{path}, session {number}", path) for number, one in enumerate(sessions, 1)]


def read_record(directory: RunDirectory, index: int) -> dict[str, Any]:
    """The record of a finished cycle."""
    path = directory.record(index)
    line = directory.read(path)
    if line.get("cycle") != index:
        raise CorruptFile(f"{path} is damaged: it is the record of cycle {line.get('cycle')}, not {index}. Restore it.")
    if not isinstance(line.get("digest"), dict):
        raise CorruptFile(f"{path} is damaged: it has no digest of weights and mask. Restore it from a copy.")
    return line


def record_at(records: Sequence[Mapping[str, Any]], density: float) -> Mapping[str, Any] | None:
    """The record of the cycle with the nearest density; None if none is within TOLERANCE."""
    nearest = min(records, key=lambda record: abs(record["density"]["prunable"] - density), default=None)
    return nearest if nearest and same_density(nearest["density"]["prunable"], density) else None


def same_density(found: float, wanted: float) -> bool:
    """Whether two densities differ by TOLERANCE at most, relative to the wanted one."""
    return abs(found - wanted) <= TOLERANCE * wanted


def read_mask(directory: RunDirectory, index: int) -> Mask:
    """The mask of a finished cycle."""
    return _mask_of(directory, index, read_record(directory, index))


def read_weights(directory: RunDirectory, index: int) -> dict[str, Tensor]:
    """The weights of a finished cycle's model."""
    return _weights_of(directory, index, read_record(directory, index))


def read_cycle(directory: RunDirectory, index: int) -> Cycle:
    """A finished cycle: its record, mask and weights. Raises CorruptFile, naming the damaged file."""
    line = read_record(directory, index)
    mask, weights = _mask_of(directory, index, line), _weights_of(directory, index, line)
    try:
        return Cycle.from_json(line, mask, weights)
    except SwampError as error:
        raise CorruptFile(f"{directory.record(index)}: {error}") from error


def read_choice(directory: RunDirectory) -> Choice | None:
    """The backend that timing chose for a run; None where nothing was chosen."""
    path = directory.backend
    if not path.exists():
        return None
    values = directory.read(path)
    try:
        return Choice.from_json(values)
    except SwampError as error:
        raise CorruptFile(f"{path} is damaged: {error} Restore it from a copy.") from error


def warn_of_first_member(config: RunConfig, cycle: Cycle) -> None:
    """Warn for an ensemble, of which a cycle has the weights of one member."""
    if config.plan.spec.ensemble:
        warn(
            f"the run is an ensemble of {len(cycle.particles)} members: this network is its first member, and "
            "the recorded metrics are those of all members together."
        )


def _mask_of(directory: RunDirectory, index: int, line: dict[str, Any]) -> Mask:
    path = directory.cycle(index) / "mask.safetensors"
    mask = Mask.load(path)
    _require_digest(path, mask.digest, line["digest"].get("mask"))
    return mask


def _weights_of(directory: RunDirectory, index: int, line: dict[str, Any]) -> dict[str, Tensor]:
    path = directory.cycle(index) / "mean.safetensors"
    weights, _ = load_tensors(path)
    _require_digest(path, digest(weights), line["digest"].get("weights"))
    return weights


def _require_digest(path: Path, found: str, expected: object) -> None:
    if found != expected:
        raise CorruptFile(f"{path} is not the file its record was written with. Restore it from a copy.")


def read_particle(directory: RunDirectory, cycle: int, index: int) -> Particle:
    """A finished particle."""
    path = directory.particle(cycle, index)
    particle = directory.load(path, Particle.load)
    if particle.index != index:
        raise CorruptFile(f"{path} is particle {particle.index} of its cycle, moved or copied to another path.")
    return particle


def read_ticket(directory: RunDirectory) -> Ticket:
    """The ticket."""
    return directory.load(directory.ticket, Ticket.load)


def unless_damaged(paths: Sequence[Path], read: Callable[[], _T], again: str) -> _T | None:
    """Call `read` and return its result; None if the first of `paths` does not exist or is damaged.

    In the last case all of `paths` are renamed, and a warning says so; `again` is its text on what happens next.
    """
    if not paths[0].exists():
        return None
    try:
        return read()
    except CorruptFile as error:
        kept = [str(quarantine(path)) for path in paths if path.exists()]
        warn(f"{error} {again} (Kept as {', '.join(kept)}.)")
        return None
