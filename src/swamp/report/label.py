"""What each run is called in a comparison."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

from swamp.errors import SwampError
from swamp.report.read import RunRecord
from swamp.runs import RunConfig, flattened


def particles_of(run: RunRecord) -> int:
    """The most particles that any finished cycle of the run had."""
    return max(len(cycle["particles"]) for cycle in run.cycles)


def label_runs(runs: Sequence[RunRecord]) -> tuple[list[str], list[str]]:
    """A label for each run, and notes about runs that share one although their settings differ beyond the seed.

    The label is the method with its particles where more than one; runs of one seed that would share it get the
    settings appended in which they differ. Raises SwampError for two runs that are the same in every setting.
    """
    base = _base_labels(runs)
    labels = list(base)
    for name in dict.fromkeys(base):
        members = [index for index, label in enumerate(base) if label == name]
        fields = _fields_within_seeds([runs[index] for index in members])
        for index in members:
            flat = _flat(runs[index])
            labels[index] = ", ".join([name, *(f"{field}={_show(flat, field)}" for field in fields)])
    return labels, _pooled(runs, labels)


def show(value: object) -> str:
    """A setting as a label says it: text as it is, an object by its name, the rest as JSON."""
    if isinstance(value, Mapping):
        value = cast(Mapping[str, Any], value).get("name", cast(object, value))
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _base_labels(runs: Sequence[RunRecord]) -> list[str]:
    # A run stopped in the early one-particle cycles is still the same method as its finished siblings.
    most: dict[str, int] = defaultdict(int)
    for run in runs:
        most[_settings(run)] = max(most[_settings(run)], particles_of(run))
    labels: list[str] = []
    for run in runs:
        method, particles = show(run.config["method"]), most[_settings(run)]
        labels.append(f"{method} ({particles})" if particles > 1 else method)
    return labels


def _settings(run: RunRecord) -> str:
    return json.dumps({key: value for key, value in run.config.items() if key != "seed"}, sort_keys=True)


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
    flats = [_flat(run) for run in runs]
    keys = {key for flat in flats for key in flat} - {"seed"}
    return {key for key in keys if len({_show(flat, key) for flat in flats}) > 1}


def _flat(run: RunRecord) -> dict[str, Any]:
    # A setting that did not exist yet when the run was made acted as its default does.
    usual = RunConfig().to_json()
    usual |= usual.pop("plan")
    return flattened(usual) | flattened(run.config)


def _show(flat: Mapping[str, object], key: str) -> str:
    return show(flat[key]) if key in flat else "unset"


def _pooled(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[str]:
    notes: list[str] = []
    for name in dict.fromkeys(labels):
        fields = _fields(run for run, label in zip(runs, labels, strict=True) if label == name)
        if fields:
            notes.append(
                f"The seeds of {name} also differ in {', '.join(sorted(fields))}; they are averaged all the same."
            )
    return notes
