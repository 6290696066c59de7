"""A run directory, read back: its configuration and its finished cycles."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from swamp.errors import CorruptFile, SwampError
from swamp.files import parse_json
from swamp.runs import RunDirectory, open_run

SPLITS = ("train", "validation", "test")
CONFIG, METRICS = "config.json", "metrics.jsonl"
_COSTS = ("steps", "samples", "operations", "seconds")


@dataclass(frozen=True)
class RunRecord:
    """One run: where it lies, its configuration, and one record a finished cycle (at least one, in order).

    Every record has `operations`, None where not recorded, and `total`: what getting this model took in all.
    """

    directory: RunDirectory
    config: Mapping[str, Any]
    cycles: tuple[Mapping[str, Any], ...]

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.directory.path


def read_run(path: Path | str) -> RunRecord:
    """Read `config.json` and `metrics.jsonl` of a run directory.

    Records from before `operations` and `total` were written get the sums over all cycles so far as their total.
    Raises SwampError if it is not a run directory, has no finished cycle yet, or holds a damaged file or line.
    """
    path = Path(path)
    if not (path / CONFIG).is_file() and not RunDirectory(path).original.exists():
        raise SwampError(f"{path} is not a run directory: expected {CONFIG} and {METRICS} there. {_hint(path)}")
    metrics = path / METRICS
    lines = _lines(metrics)
    # Runs written by hand, and by versions that are older than all, have a configuration alone.
    known = RunDirectory(path).original.exists() or any(b'"seal"' in line for line in lines)
    directory = open_run(path)[0] if known else RunDirectory(path)
    config = _object((path / CONFIG).read_bytes(), str(path / CONFIG))
    # What the plan says (method, seed, particles ...) is what labels speak of: it stands at the top.
    plan: Any = config.pop("plan", {})
    if not isinstance(plan, dict):
        raise _damaged(str(path / CONFIG), "'plan' is not an object")
    config |= cast(dict[str, Any], plan)
    for key in ("task", "model", "method", "seed"):
        if key not in config:
            raise SwampError(f"{path / CONFIG} has no {key!r}; expected task, model, plan.method and plan.seed.")
    if not isinstance(config["seed"], int):
        raise SwampError(f"{path / CONFIG} has the seed {config['seed']!r}; expected a whole number.")
    # A cycle is finished a moment before its line is written; the file is never written empty.
    late = not directory.summary.exists() and (bool(lines) or not metrics.exists())
    if directory.last + 1 - len(lines) > late:
        raise _damaged(str(metrics), f"it has {len(lines)} of {directory.last + 1} finished cycles")
    if not lines:
        raise SwampError(
            f"{path} has no finished cycle yet, or none in {METRICS}; wait for the first one, or go on with the run."
        )
    cycles = [_cycle(directory, line, f"{metrics}, line {number}") for number, line in enumerate(lines, 1)]
    for number, (one, two) in enumerate(pairwise(cycles), 2):
        if two["cycle"] <= one["cycle"]:
            raise _damaged(f"{metrics}, line {number}", f"cycle {two['cycle']} comes after cycle {one['cycle']}")
    return RunRecord(directory, config, tuple(_with_totals(cycles)))


def number(value: object) -> float | None:
    """The value as a float; None for anything that is not a number, such as a metric that was not measured."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def measured(metrics: Mapping[str, object], name: str) -> float | None:
    """A metric; None where it was not measured, NaN where it was and is no number, which JSON holds as null."""
    return math.nan if name in metrics and metrics[name] is None else number(metrics.get(name))


def _hint(path: Path) -> str:
    if not path.exists():
        return "It does not exist; check the path."
    inside = sorted(child.parent.name for child in path.glob(f"*/{CONFIG}"))
    more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
    if not inside:
        return "Give the directory of one run."
    return f"There are runs inside it: {', '.join(inside[:5])}{more}. (The folder of a study has a study.json.)"


def _lines(metrics: Path) -> list[bytes]:
    try:
        return metrics.read_bytes().splitlines() if metrics.exists() else []
    except OSError as error:
        raise _damaged(str(metrics), f"it cannot be read ({error.strerror})") from error


def _cycle(directory: RunDirectory, line: bytes, where: str) -> Mapping[str, Any]:
    cycle = _object(line, where)
    if not isinstance(cycle.get("cycle"), int):
        raise _damaged(where, "'cycle' is not a whole number")
    cycle = directory.unsealed(cycle, where, directory.record(cycle["cycle"]))
    _costs(cycle, where, "")
    if (total := cycle.get("total")) is not None:
        if not isinstance(total, dict):
            raise _damaged(where, "'total' is neither an object nor null")
        _costs(cast(dict[str, Any], total), where, "total.")
    density: Any = cycle.get("density")
    for key in ("prunable", "all"):
        value = number(cast(Any, density).get(key)) if isinstance(density, dict) else None
        if value is None or not 0 < value <= 1:
            raise _damaged(where, f"'density.{key}' is not a number above 0 and at most 1")
    particles: Any = cycle.get("particles")
    if not isinstance(particles, list):
        raise _damaged(where, "'particles' is not a list")
    _metrics(cycle, where)
    for index, particle in enumerate(cast(list[object], particles)):
        if not isinstance(particle, dict):
            raise _damaged(where, f"particle {index} is not an object")
        _metrics(cast(dict[str, Any], particle), f"{where}, particle {index}")
    return cycle


def _costs(holder: Mapping[str, Any], where: str, prefix: str) -> None:
    for key in _COSTS:
        unknown = key == "operations" and holder.get(key) is None
        if not unknown and number(holder.get(key)) is None:
            raise _damaged(where, f"'{prefix}{key}' is not a number")


def _with_totals(cycles: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    spent: dict[str, float | None] = dict.fromkeys(_COSTS, 0)
    for cycle in cycles:
        for key, before in spent.items():
            now = cycle.get(key)
            spent[key] = None if before is None or now is None else before + now
        total = cycle.get("total") or spent
        yield {**cycle, "operations": cycle.get("operations"), "total": {key: total.get(key) for key in _COSTS}}


def _metrics(holder: Mapping[str, Any], where: str) -> None:
    for split in SPLITS:
        if not isinstance(holder.get(split), dict | None):
            raise _damaged(where, f"{split!r} is neither an object nor null")


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value: Any = parse_json(data)
    except ValueError as error:
        raise _damaged(where, str(error)) from error
    if not isinstance(value, dict):
        raise _damaged(where, f"it holds {type(value).__name__}, not an object")
    return cast(dict[str, Any], value)


def _damaged(where: str, why: str) -> SwampError:
    return CorruptFile(
        f"{where} is damaged: {why}. Restore the file from a copy; or delete it and go on with swamp resume, which "
        "writes it again."
    )
