"""Analyses as tasks: each task is computed once, appended to a JSON lines file, and skipped the next time."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from swamp.analysis.run_data import RunData
from swamp.errors import CorruptFile
from swamp.files import one_at_a_time, parse_json, remove_unfinished, write_atomic
from swamp.runs.directory import RunDirectory, add_checksum, replace_nonfinite

ANALYSIS_FILE = "analysis.jsonl"

Record = dict[str, Any]
"""Results of an analysis, or a part of them: values that JSON can represent."""


@dataclass(frozen=True)
class AnalysisSettings:
    """Settings shared by all analyses of a run."""

    examples: int = 2000
    """Maximum number of examples that losses and errors are measured on."""
    curvature_examples: int = 500
    """Maximum number of training examples for curvature (at most `examples`); the cost is proportional to it."""
    curvature_particles: int = 1
    """Particles whose curvature is measured, in the first, middle and last cycle. Particles of a cycle are alike."""
    points: int = 30
    """Number of points on a segment between two models, both ends included."""
    seed: int = 0
    """Seed of random directions, probes and samples."""


@dataclass(frozen=True)
class AnalysisTask:
    """One part of an analysis, computed and stored separately."""

    key: str
    """Unique in a run, e.g. 'barriers/cycle-03/particles'; the part before the first / names the analysis."""
    compute: Callable[[], Mapping[str, Any]]
    """Returns the values of the record, which must be serialisable as JSON."""


Analysis = Callable[[RunData, AnalysisSettings], Iterable[AnalysisTask]]
"""(run, settings) -> tasks, cheap ones first. The first line of its docstring is the question it answers."""


def first_middle_last(cycles: int) -> list[int]:
    """Indices of the first, middle and last of `cycles` cycles, for expensive analyses."""
    return sorted({0, (cycles - 1) // 2, cycles - 1})


def tasks_by_cycle(
    name: str,
    run: RunData,
    settings: AnalysisSettings,
    of_cycle: Callable[[RunData, int, AnalysisSettings], Record],
    over_cycles: Callable[[Sequence[Mapping[str, Any]]], Record],
) -> Iterator[AnalysisTask]:
    """Yield a task for each cycle with particles, NAME/cycle-XX, and NAME/all over them once the run is finished.

    Args:
        name: Name of the analysis.
        run: The run to analyse.
        settings: Settings of the analysis.
        of_cycle: Computes the record of a cycle.
        over_cycles: Computes the record over all cycles from theirs, which are read from disk: numbers that are not
            finite are None.
    """
    indices = run.cycles_with_particles()

    def over_all() -> Record:
        known = {one["key"]: one for one in read_analysis(run.directory) if one["settings"] == settings.__dict__}
        return over_cycles(
            [known.get(cycle_key(name, i)) or replace_nonfinite(of_cycle(run, i, settings)) for i in indices]
        )

    for index in indices:
        yield AnalysisTask(cycle_key(name, index), partial(of_cycle, run, index, settings))
    # Later cycles would change this record, and records are not computed again.
    if run.cycles == len(run.config.plan.schedule()):
        yield AnalysisTask(f"{name}/all", over_all)


def cycle_key(name: str, cycle: int) -> str:
    """Key of the task of a cycle."""
    return f"{name}/cycle-{cycle:02d}"


def analyze(run: RunData, tasks: Iterable[AnalysisTask], settings: AnalysisSettings) -> Iterator[Mapping[str, Any]]:
    """Yield the record of each of `tasks`, computed now or read from the run directory.

    Records are appended to `analysis.jsonl` in the run directory, atomically, also if several processes analyse the
    same run. A record computed with other settings is computed again and replaced.

    Args:
        run: the run to analyse.
        tasks: tasks of this run with these settings, e.g. `ANALYSES["hull"](run, settings)`.
        settings: number of examples, points and so on.

    Yields:
        {"key": ..., "settings": ..., and the values of the task}. Values that are not finite are None.
    """
    directory = run.directory
    known = {record["key"]: record for record in read_analysis(directory)}
    used = settings.__dict__
    for task in tasks:
        record = known.get(task.key)
        if record is None or record["settings"] != used:
            # JSON has no NaN or infinity: they become null, and figures show them as missing.
            record = replace_nonfinite({"key": task.key, "settings": dict(used), **task.compute()})
            known = _append(directory, record)
        yield record


def _append(directory: RunDirectory, record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Write all records and this one; return them by key."""
    file = directory.path / ANALYSIS_FILE
    with one_at_a_time(directory.path / f".{ANALYSIS_FILE}.lock"):
        remove_unfinished(file)
        # Read again: another process may have appended records.
        records = {other["key"]: other for other in read_analysis(directory)} | {record["key"]: record}
        lines = [json.dumps(add_checksum(line, directory.provenance(file))) + "\n" for line in records.values()]
        write_atomic(file, "".join(lines).encode())
    return records


def read_analysis(run: RunDirectory | Path) -> list[Mapping[str, Any]]:
    """Read the records of all analyses of a run computed so far.

    Args:
        run: a run directory. With a `Path`, it is not checked that the records are of this run.

    Raises:
        CorruptFile: a line is damaged or belongs to another run; the message names the line.
    """
    directory = run if isinstance(run, RunDirectory) else RunDirectory(run)
    file = directory.path / ANALYSIS_FILE
    try:
        lines = file.read_bytes().splitlines() if file.exists() else []
    except OSError as error:
        raise CorruptFile(f"{file} cannot be read ({error.strerror}). Move it away: it is computed again.") from error
    if file.exists() and not lines:
        raise CorruptFile(f"{file} is damaged: it is empty. Delete it: it is computed again.")
    found: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, 1):
        where = f"{file}, line {number}"
        try:
            record = directory.verify(parse_json(line), where, file)
            found.append({"key": record["key"], "settings": record["settings"], **record})
        except CorruptFile as error:
            raise CorruptFile(f"{error} Without a copy, delete the line: it is computed again.") from error
        except (ValueError, KeyError) as error:
            raise CorruptFile(f"{where} is damaged ({error}). Delete the line: it is computed again.") from error
    return found
