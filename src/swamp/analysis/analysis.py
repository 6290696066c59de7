"""Analyses as units of work: each is done once, written as a line of JSON, and skipped the next time."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swamp.analysis.subject import Subject
from swamp.errors import CorruptFile
from swamp.files import one_at_a_time, parse_json, remove_unfinished, write_atomic
from swamp.runs import RunDirectory
from swamp.runs.seal import finite, sealed

FILE = "analysis.jsonl"


@dataclass(frozen=True)
class Settings:
    """What is the same for all analyses of a run."""

    examples: int = 2000
    """Examples that losses and errors are taken on, at most."""
    curvature_examples: int = 500
    """Training examples that curvature is taken on, at most (of `examples`); it costs as many times more."""
    corners: int = 1
    """Particles that curvature is taken at in the first, middle and last cycle; they are alike: one stands for all."""
    points: int = 30
    """Points of a segment between two models."""
    seed: int = 0
    """Of directions, probes and samples."""


@dataclass(frozen=True)
class Unit:
    """One piece of an analysis."""

    key: str
    """Its name among all units of a run, e.g. 'connectivity/cycle-03/particles'; the part before / is the analysis."""
    work: Callable[[], Mapping[str, Any]]
    """Computes it: plain values, as JSON holds them."""


Analysis = Callable[[Subject, Settings], Iterable[Unit]]
"""(run, settings) -> what there is to compute, cheap units first. Its docstring's first line says what it answers."""


def spread(cycles: int) -> list[int]:
    """The first, the middle and the last of so many cycles, for what costs much: what lies between looks alike."""
    return sorted({0, (cycles - 1) // 2, cycles - 1})


def analyze(subject: Subject, chosen: Mapping[str, Analysis], settings: Settings) -> Iterator[Mapping[str, Any]]:
    """Yield a record for every unit, computed now or read back: {"key": ..., "settings": ..., and its values}.

    Records are appended to FILE in the run directory, whole or not at all, also where several processes analyse one
    run. Those of other settings are made anew.
    """
    directory = subject.directory
    done = {record["key"]: record for record in read_analysis(directory)}
    used = settings.__dict__
    for analysis in chosen.values():
        for unit in analysis(subject, settings):
            record = done.get(unit.key)
            if record is None or record["settings"] != used:
                # What is not finite is null: JSON knows no other, and a picture shows it as missing.
                record = finite({"key": unit.key, "settings": dict(used), **unit.work()})
                done = _added(directory, record)
            yield record


def _added(directory: RunDirectory, record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """All records, with this one, once they are written."""
    file = directory.path / FILE
    with one_at_a_time(directory.path / f".{FILE}.lock"):
        remove_unfinished(file)
        # Read again: another process may have added some.
        done = {other["key"]: other for other in read_analysis(directory)} | {record["key"]: record}
        lines = [json.dumps(sealed(line, directory.about(file))) + "\n" for line in done.values()]
        write_atomic(file, "".join(lines).encode())
    return done


def read_analysis(run: RunDirectory | Path) -> list[Mapping[str, Any]]:
    """What was computed of a run so far; of a path it is not known which run lies there, and lines of any are read.

    Raises CorruptFile naming a line that is damaged, or of another run.
    """
    directory = run if isinstance(run, RunDirectory) else RunDirectory(run)
    file = directory.path / FILE
    try:
        lines = file.read_bytes().splitlines() if file.exists() else []
    except OSError as error:
        raise CorruptFile(f"{file} cannot be read ({error.strerror}). Move it away: it is made anew.") from error
    if file.exists() and not lines:
        raise CorruptFile(f"{file} is damaged: it is empty. Delete it: it is made anew.")
    found: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, 1):
        where = f"{file}, line {number}"
        try:
            record = directory.unsealed(parse_json(line), where, file)
            found.append({"key": record["key"], "settings": record["settings"], **record})
        except CorruptFile as error:
            raise CorruptFile(f"{error} Without a copy, delete the line: it is made anew.") from error
        except (ValueError, KeyError) as error:
            raise CorruptFile(f"{where} is damaged ({error}). Delete it: it is made anew.") from error
    return found
