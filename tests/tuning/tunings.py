"""Tiny tunings: trials of three cycles that train in a third of a second."""

from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from swamp.recipes import configuration
from swamp.runs.config import RunConfig
from swamp.runs.run_progress import Reporter
from swamp.tuning.optuna_studies import TrialRecord, shown_storage
from swamp.tuning.search_space import parse_range
from swamp.tuning.trials import open_studies, work_on_trials
from swamp.tuning.tuning_directory import TuningDirectory, TuningPlan, check_tuning


def tiny_config(**training: Any) -> RunConfig:
    base = configuration("digits-mlp")
    return replace(
        base,
        model="mlp-16",
        backend="sequential",
        data=replace(base.data, examples=320),
        plan=replace(base.plan, sparsity=0.75),
        training=replace(base.training, **{"swa_fraction": 0.25, **training}),
    )


def tiny_tuning(*search: str, methods: tuple[str, ...] = ("swamp",), **changes: Any) -> TuningPlan:
    config = tiny_config()
    ranges = tuple(parse_range(one, config) for one in search or ("lr=0.01..1:log",))
    tuning = TuningPlan(config, methods, ranges, "accuracy", True, **changes)
    check_tuning(tuning)
    return tuning


def started(path: Path, tuning: TuningPlan, trials: int = 4, storage: str = "") -> tuple[TuningDirectory, str]:
    storage = storage or str(path / "trials.journal")
    return TuningDirectory.join(path, tuning, shown_storage(storage), trials), storage


def worked(path: Path, tuning: TuningPlan, trials: int = 4, storage: str = "", **options: Any) -> TuningDirectory:
    """A tuning that one worker has finished, in this process."""
    directory, storage = started(path, tuning, trials, storage)
    work_on_trials(directory, storage, lambda *_: Reporter(), options.pop("stop", Event()), **options)
    return directory


def records(directory: TuningDirectory, storage: str = "", method: str = "swamp") -> list[TrialRecord]:
    return open_studies(directory, storage or directory.storage)[method].records()


def told(found: list[TrialRecord]) -> list[Any]:
    """What a tuning has found, without times and workers."""
    return [(one.number, one.state, dict(one.settings), one.value, dict(one.cycles)) for one in found]
