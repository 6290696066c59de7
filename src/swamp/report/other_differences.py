"""What differs between compared runs beside their method: refused for the evaluated data, else told in a note."""

from collections.abc import Sequence
from itertools import groupby

from swamp.errors import SwampError, shortened
from swamp.report.run_records import TASK_DATA, RunRecord, flat_settings, show_setting

_TEST_SET = ("data.classes", "data.text.label", "data.text.columns", "data.text.neutral")
"""Settings that decide the examples of the test data, and their targets."""
_EVALUATED = {"test": _TEST_SET, "validation": (*_TEST_SET, "data.validation", "data.labels.labelled"), "train": ()}
"""Split -> settings that decide its data. Runs may differ in training data: a note says so."""
_NAMES = ("data.text.label", "data.text.columns")
"""Settings whose empty value stands for names that are found in the data, maybe the same ones."""
_IN_THE_TABLES = ("seed", "method", "particles", "sparsity", "densities", "cycles", "prune_fraction")
"""Fields that labels and rows show."""
_BESIDE_THE_WEIGHTS = (
    *("recipe", "device", "threads", "backend", "keep_checkpoints", "snapshot_seconds", "test_data", "track", "shard"),
    *("heartbeat_seconds", "trajectory_every", "data.workers", "on_divergence", "barrier_points", "barrier_threshold"),
    *("evaluation_examples", f"{TASK_DATA}.test", f"{TASK_DATA}.validation"),
)
"""Fields, or parts of the configuration, that change the weights of no training that converges, beyond rounding."""


def require_same_data(runs: Sequence[RunRecord], split: str) -> None:
    """Raise SwampError for runs that were evaluated on different data of `split`, as far as they record it.

    Runs from Python record the size and a digest of their data. A program may draw these by the seed, so that only runs
    of one seed are compared.
    """
    for name in _EVALUATED[split]:
        _refuse(split, name, [run for run in runs if name not in _NAMES or flat_settings(run).get(name)])
    if split == "train":
        return
    recorded = [run for run in runs if split in run.config.get(TASK_DATA, {})]
    for same in _by_seed(recorded):
        _refuse(split, f"{TASK_DATA}.{split}.examples", same)
        # The digest is that of all data or of the first batch: the type decides.
        for kind in sorted({str(run.config[TASK_DATA][split]["type"]) for run in same}):
            of_kind = [run for run in same if run.config[TASK_DATA][split]["type"] == kind]
            _refuse(split, f"{TASK_DATA}.{split}.digest", of_kind)


def other_differences(labels: Sequence[str], runs: Sequence[RunRecord]) -> list[str]:
    """A note on the settings beside the method in which runs of one seed and different labels differ; or none.

    labels: of each run. A setting that every label states is left out.
    """
    label_of = {run.path: label for label, run in zip(labels, runs, strict=True)}
    found: dict[str, str] = {}
    for same in _by_seed(runs):
        flats = {label_of[run.path]: flat_settings(run) for run in same}
        for name in dict.fromkeys(name for flat in flats.values() for name in flat):
            values: dict[str, list[str]] = {}
            for label, flat in flats.items():
                values.setdefault(show_setting(flat, name), []).append(label)
            told = name in _IN_THE_TABLES or all(f", {name}=" in label for label in flats)
            if len(values) > 1 and not told and not name.startswith(_BESIDE_THE_WEIGHTS):
                found.setdefault(name, _values(name, {value: shortened(its, 3) for value, its in values.items()}))
    told = "; ".join([*found.values()][:_MOST]) + (f"; and {len(found) - _MOST} more" if len(found) > _MOST else "")
    return [f"The runs differ not only in their methods: {told}."] if found else []


_MOST = 6
"""Settings that a note names with their values."""


def _refuse(split: str, name: str, runs: Sequence[RunRecord]) -> None:
    first: dict[str, str] = {}
    for run in runs:
        first.setdefault(show_setting(flat_settings(run), name), str(run.path))
    if len(first) > 1:
        raise SwampError(
            f"runs with different {split} data cannot share a table: {_values(name, first)}. Compare runs of the same "
            "data."
        )


def _values(name: str, places: dict[str, str]) -> str:
    """`name` with each of its values, and where it has this value."""
    return f"{name} is " + ", ".join(f"{value or 'empty'} ({place})" for value, place in places.items())


def _by_seed(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    def seed(run: RunRecord) -> int:
        return int(run.config["seed"])

    return [list(same) for _, same in groupby(sorted(runs, key=seed), seed)]
