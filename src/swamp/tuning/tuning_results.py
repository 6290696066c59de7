"""What a tuning has found: the best trial of each method, the importance of options, and the files with them."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swamp.files import write_atomic
from swamp.runs.budget import cost_of
from swamp.runs.directory import write_json
from swamp.tuning.optuna_studies import TrialRecord, TuningStudy
from swamp.tuning.search_space import OptionValue
from swamp.tuning.tuning_directory import TuningDirectory, TuningPlan, trial_name

_COUNTED = ("finished", "stopped", "failed", "running", "waiting")


@dataclass(frozen=True)
class MethodResult:
    """The trials of one method."""

    method: str
    trials: tuple[TrialRecord, ...]
    """Those that count, in order."""
    best: TrialRecord | None
    """None: no trial is finished."""
    importance: Mapping[str, float]
    """Option -> share; empty if it is not known yet."""

    @property
    def counts(self) -> dict[str, int]:
        """State -> number of trials."""
        found = Counter(one.state for one in self.trials)
        return {state: found[state] for state in _COUNTED}


def results_of(tuning: TuningPlan, studies: Mapping[str, TuningStudy]) -> list[MethodResult]:
    """The result of each method so far."""
    found: list[MethodResult] = []
    for method, study in studies.items():
        trials = tuple(record for record in study.records() if record.counts)
        found.append(MethodResult(method, trials, best_trial(tuning, trials), study.importance()))
    return found


def best_trial(tuning: TuningPlan, trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The finished trial with the best metric, the first of equal ones; None if none is finished."""
    sign = 1 if tuning.higher else -1
    finished = [one for one in trials if one.value is not None]
    return max(finished, key=lambda one: sign * (one.value or 0.0), default=None)


def write_results(directory: TuningDirectory, results: Sequence[MethodResult]) -> dict[str, list[Path]]:
    """Write the best configurations, the table of all trials, and the figure.

    Returns:
        "configs", "tables" and "pictures" -> files.
    """
    tuning, configs = directory.tuning, list[Path]()
    for result in results:
        if result.best is not None:
            configs.append(directory.best_config(result.method))
            write_json(configs[-1], tuning.best(result.method, result.best.settings).to_json())
    table = directory.path / "trials.csv"
    write_atomic(table, _table(tuning, results).encode())
    pictures: list[Path] = []
    if configs:
        # Imported here, because matplotlib takes a second, and a worker draws nothing.
        from swamp.report.matplotlib_renderer import draw
        from swamp.tuning.tuning_figure import tuning_figure

        pictures = [directory.path / f"tuning.{suffix}" for suffix in ("png", "svg")]
        draw(tuning_figure(tuning, results), pictures)
    return {"configs": configs, "tables": [table], "pictures": pictures}


def result_json(directory: TuningDirectory, result: MethodResult) -> dict[str, Any]:
    """Plain values of one method's result."""
    best: dict[str, Any] | None = None
    if result.best is not None:
        best = {
            "trial": result.best.number,
            "value": result.best.value,
            "settings": dict(result.best.settings),
            "epochs": directory.tuning.best(result.method, result.best.settings).training.epochs,
            "config": str(directory.best_config(result.method)),
            "run": str(directory.runs_of(result.method).run(trial_name(result.best.number)).path),
        }
    cost = cost_of(directory.tuning.base_of(result.method))
    return {"trials": len(result.trials), **result.counts, "cost": cost, "best": best, "importance": result.importance}


def _table(tuning: TuningPlan, results: Sequence[MethodResult]) -> str:
    options = [one.option for one in tuning.search]
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    write.writerow(["method", "trial", "state", tuning.metric, *options, "epochs", "cost", "cycles", "seconds", "why"])
    for result in results:
        for one in result.trials:
            config = tuning.trial(result.method, one.settings) if one.settings else None
            settings: list[OptionValue] = [one.settings.get(option, "") for option in options]
            cost = ["", ""] if config is None else [config.training.epochs, cost_of(config)]
            value = "" if one.value is None else one.value
            reached = max(one.cycles, default=0)
            row = [result.method, one.number, one.state, value, *settings, *cost, reached, one.seconds, one.why]
            write.writerow(row)
    return text.getvalue()
