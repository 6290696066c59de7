"""Reads the configuration and the finished cycles of a run directory, and gives each run of a comparison a label."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, cast

from swamp.errors import CorruptFile, SwampError, shortened
from swamp.files import parse_json
from swamp.runs import open_run
from swamp.runs.config import ORIGIN, RunConfig, flattened
from swamp.runs.directory import PROVENANCE, RunDirectory

SPLITS = ("train", "validation", "test")
CONFIG, METRICS = "config.json", "metrics.jsonl"
TASK_DATA = "task_data"
"""Key of `RunRecord.config`: split -> type, size and digest of the data of a run from Python."""
_MODEL_SIZE = "model_parameters"
"""Key of `RunRecord.config`: the number of parameters of the model of a run from Python."""
_COSTS = ("steps", "samples", "flops", "seconds", "sequential_steps")


@dataclass(frozen=True)
class RunRecord:
    """One run: its directory, its configuration, and one record per finished cycle (at least one, in order).

    Every record has its costs and `total`, the cost of its model in all; `flops` is None where it is unknown.
    """

    directory: RunDirectory
    config: Mapping[str, Any]
    """The fields of the run's configuration; the fields of its plan (method, seed ...) are at the top level."""
    cycles: tuple[Mapping[str, Any], ...]
    higher_is_better: bool | None = None
    """Of the first metric, as its task says (None: judged by its name)."""

    @property
    def path(self) -> Path:
        """The path of the run directory."""
        return self.directory.path


def read_run(path: Path | str) -> RunRecord:
    """Read `config.json` and `metrics.jsonl` of a run directory.

    Args:
        path: a run directory.

    Returns:
        The run with its finished cycles.

    Raises:
        SwampError: `path` is not a run directory, has no finished cycle yet, or has a damaged file or line.
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise SwampError(f"{path} is not a run directory: expected {CONFIG} and {METRICS} there. {_hint(path)}")
    metrics = path / METRICS
    lines = _lines(metrics)
    config = _config(path / CONFIG)
    origin = config.pop(ORIGIN, None)
    about = cast("dict[str, Any]", origin) if isinstance(origin, dict) else {}
    config |= _recorded(about)
    # A run directory that was written by hand states no provenance.
    known = config.pop(PROVENANCE, None) is not None or any(PROVENANCE.encode() in line for line in lines)
    directory = open_run(path)[0] if known else RunDirectory(path)
    # The last cycle is finished a moment before its line is written; the file is never written empty.
    late = not directory.summary.exists() and (bool(lines) or not metrics.exists())
    if directory.last + 1 - len(lines) > late:
        raise _damaged(str(metrics), f"it has {len(lines)} of {directory.last + 1} finished cycles")
    if not lines:
        raise SwampError(f"{path} has no finished cycle yet: wait for the first one, or continue the run.")
    cycles = [_cycle(directory, line, f"{metrics}, line {number}") for number, line in enumerate(lines, 1)]
    for number, (one, two) in enumerate(pairwise(cycles), 2):
        if two["cycle"] <= one["cycle"]:
            raise _damaged(f"{metrics}, line {number}", f"cycle {two['cycle']} comes after cycle {one['cycle']}")
    if config.get("test_data") is False:
        cycles = [*map(_without_test, cycles)]
    return RunRecord(directory, config, tuple(cycles), about.get("higher_is_better"))


def _without_test(cycle: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the split that its run did not measure: its metrics are null, as for a model that diverged."""
    return {**cycle, "test": {}, "particles": [{**particle, "test": {}} for particle in cycle["particles"]]}


def as_float(value: object) -> float | None:
    """The value as a float; None for anything that is not a number, such as a metric that was not measured."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def measured(metrics: Mapping[str, object], name: str) -> float | None:
    """A metric; None if it was not measured, NaN if it was measured and not finite (null in JSON)."""
    return math.nan if name in metrics and metrics[name] is None else as_float(metrics.get(name))


def particles_of(run: RunRecord) -> int:
    """The largest number of particles in any finished cycle."""
    return max(len(cycle["particles"]) for cycle in run.cycles)


def label_runs(runs: Sequence[RunRecord]) -> tuple[list[str], list[str]]:
    """Return a label for each run, and notes on runs that share a label although settings beside the seed differ.

    A label is the method, with the number of particles if there are several. Runs of one seed that would share a label
    get the settings appended in which they differ.

    Raises:
        SwampError: two runs are equal in every setting and the seed.
    """
    base = _base_labels(runs)
    labels = list(base)
    for name in dict.fromkeys(base):
        members = [index for index, label in enumerate(base) if label == name]
        fields = _fields_within_seeds([runs[index] for index in members])
        for index in members:
            flat = flat_settings(runs[index])
            labels[index] = ", ".join([name, *(f"{field}={show_setting(flat, field)}" for field in fields)])
    return labels, _pooled(runs, labels)


def show(value: object) -> str:
    """A setting as text: text unchanged, an object by its name, anything else as JSON."""
    if isinstance(value, Mapping):
        value = cast(Mapping[str, Any], value).get("name", cast(object, value))
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def flat_settings(run: RunRecord) -> dict[str, Any]:
    """The settings of a run by dotted name."""
    # A setting that the run's version did not have yet counts with its default.
    usual = RunConfig().to_json()
    usual |= usual.pop("plan")
    return flattened(usual) | flattened(run.config)


def show_setting(flat: Mapping[str, object], key: str) -> str:
    """One of the `flat_settings` as text."""
    return show(flat[key]) if key in flat else "unset"


def _hint(path: Path) -> str:
    if not path.exists():
        return "It does not exist; check the path."
    inside = sorted(child.parent.name for child in path.glob(f"*/{CONFIG}"))
    if not inside:
        return "Give the directory of one run."
    return f"There are runs inside it: {shortened(inside, 5)}. (The folder of a study has a study.json.)"


def _lines(metrics: Path) -> list[bytes]:
    try:
        return metrics.read_bytes().splitlines() if metrics.exists() else []
    except OSError as error:
        raise _damaged(str(metrics), f"it cannot be read ({error.strerror})") from error


def _config(path: Path) -> dict[str, Any]:
    config = _object(path.read_bytes(), str(path))
    # Labels are made from the plan's fields (method, seed, particles ...): they move to the top level.
    plan: Any = config.pop("plan", {})
    if not isinstance(plan, dict):
        raise _damaged(str(path), "'plan' is not an object")
    config |= cast(dict[str, Any], plan)
    for key in ("task", "model", "method", "seed"):
        if key not in config:
            raise SwampError(f"{path} has no {key!r}; expected task, model, plan.method and plan.seed.")
    if not isinstance(config["seed"], int):
        raise SwampError(f"{path} has the seed {config['seed']!r}; expected a whole number.")
    return config


def _recorded(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a run from Python recorded of its data and its model; other runs name them."""
    task = cast("dict[str, Any]", about.get("task", {}))
    if not (data := {split: task[split] for split in SPLITS if isinstance(task.get(split), dict)}):
        return {}
    shapes = cast("dict[str, list[int]]", about["model"]["parameters"])
    return {TASK_DATA: data, _MODEL_SIZE: sum(map(math.prod, shapes.values()))}


def _cycle(directory: RunDirectory, line: bytes, where: str) -> Mapping[str, Any]:
    cycle = _object(line, where)
    if not isinstance(cycle.get("cycle"), int):
        raise _damaged(where, "'cycle' is not a whole number")
    if directory.run:
        cycle = directory.verify(cycle, where, directory.record(cycle["cycle"]))
    _check_costs(cycle, where, "")
    total: Any = cycle.get("total")
    if not isinstance(total, dict):
        raise _damaged(where, "'total' is not an object")
    _check_costs(cast(dict[str, Any], total), where, "total.")
    density: Any = cycle.get("density")
    for key in ("prunable", "all"):
        value = as_float(cast(Any, density).get(key)) if isinstance(density, dict) else None
        if value is None or not 0 < value <= 1:
            raise _damaged(where, f"'density.{key}' is not a number above 0 and at most 1")
    particles: Any = cycle.get("particles")
    if not isinstance(particles, list):
        raise _damaged(where, "'particles' is not a list")
    _check_metrics(cycle, where)
    for index, particle in enumerate(cast(list[object], particles)):
        if not isinstance(particle, dict):
            raise _damaged(where, f"particle {index} is not an object")
        _check_metrics(cast(dict[str, Any], particle), f"{where}, particle {index}")
    return cycle


def _check_costs(holder: Mapping[str, Any], where: str, prefix: str) -> None:
    for key in _COSTS:
        # FLOPs that are unknown are null.
        unknown = key == "flops" and key in holder and holder[key] is None
        if not unknown and as_float(holder.get(key)) is None:
            raise _damaged(where, f"'{prefix}{key}' is not a number")


def _check_metrics(holder: Mapping[str, Any], where: str) -> None:
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
        f"{where} is damaged: {why}. Restore the file from a copy; or delete it and run swamp resume, which writes it "
        "again."
    )


def _base_labels(runs: Sequence[RunRecord]) -> list[str]:
    # A run that stopped in its one-particle cycles has the label of the finished runs of its method.
    most: dict[str, int] = defaultdict(int)
    for run in runs:
        most[_settings(run)] = max(most[_settings(run)], particles_of(run))
    labels: list[str] = []
    for run in runs:
        method, particles = show(run.config["method"]), most[_settings(run)]
        if "auto" in str(run.config.get("particles")):
            particles = "auto"
        labels.append(f"{method} ({particles})" if particles != 1 else method)
    return labels


def _settings(run: RunRecord) -> str:
    return json.dumps(
        {key: value for key, value in run.config.items() if key not in ("seed", TASK_DATA)}, sort_keys=True
    )


def _fields_within_seeds(runs: Sequence[RunRecord]) -> list[str]:
    found: set[str] = set()
    for one, two in combinations(runs, 2):
        if one.config["seed"] != two.config["seed"]:
            continue
        fields = _fields([one, two])
        if not fields:
            raise SwampError(
                f"{one.path} and {two.path} are the same run: every setting and the seed agree. "
                "Give one of them, or runs with different seeds."
            )
        found |= fields
    return sorted(found)


def _fields(runs: Iterable[RunRecord]) -> set[str]:
    flats = [flat_settings(run) for run in runs]
    keys = {key for flat in flats for key in flat} - {"seed"}
    return {key for key in keys if len({show_setting(flat, key) for flat in flats}) > 1}


def _pooled(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[str]:
    notes: list[str] = []
    for name in dict.fromkeys(labels):
        fields = _fields(run for run, label in zip(runs, labels, strict=True) if label == name)
        # A program may split its data by the seed, as swamp run does.
        fields -= {field for field in fields if field.startswith((f"{TASK_DATA}.train", f"{TASK_DATA}.validation"))}
        if fields:
            notes.append(f"The seeds of {name} also differ in {', '.join(sorted(fields))}; their mean is taken anyway.")
    return notes
