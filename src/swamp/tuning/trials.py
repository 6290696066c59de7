"""A worker of a tuning: draws trials, trains them, stops the bad ones early, and continues those that were left."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from swamp.algorithms import Cycle
from swamp.errors import Interrupted, ResourceExhausted, RunLocked, SwampError
from swamp.runs.config import RunConfig, differences
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import resume, start
from swamp.runs.run_progress import Reporter, Reporters
from swamp.runs.study_queue import ReporterOf, worker_name
from swamp.tuning.optuna_studies import StorageError, TrialRecord, TuningStudy, open_storage, shown_storage
from swamp.tuning.tuning_directory import TuningDirectory, trial_name

_BEAT_SECONDS = 30.0
_GONE_SECONDS = 300.0
"""A worker in another folder that gave no sign of life for so long counts as gone."""
_POLL_SECONDS = 2.0
_MOST_REFUSED = 200
"""Draws in a row that may be refused: then the ranges hardly have a possible combination."""
_EQUAL, _ROUNDING = 1 + 1e-9, 1e-6
_ALL_FAILED = 3
"""If the first so many trials fail, the tuning ends: the fault is not in the settings."""


def open_studies(directory: TuningDirectory, storage: str) -> dict[str, TuningStudy]:
    """Method -> its trials."""
    opened, where = open_storage(storage), shown_storage(storage)
    return {name: TuningStudy(directory.tuning, name, opened, where) for name in directory.tuning.methods}


def work_on_trials(
    directory: TuningDirectory, storage: str, reporter: ReporterOf, stop: Event, *, wait: bool = False
) -> None:
    """Train trials until every method has as many as `directory.trials`, one at a time.

    Trials that a worker left unfinished are continued first. The methods take turns, so that all have the same number.

    Args:
        directory: The tuning.
        storage: Where trials are recorded, with a password if one is needed.
        reporter: Gives what reports the run of a trial.
        stop: Ends the work; the trial in progress is saved, and continued by the next worker.
        wait: Wait for trials of other workers, and continue those that they leave.

    Raises:
        SwampError: The storage cannot be reached, no combination of the ranges is possible, or the first trials fail.
        Interrupted: `stop` was set.
    """
    worker = _Worker(directory, open_studies(directory, storage), reporter, stop)
    while True:
        if stop.is_set():
            raise Interrupted("stopped.")
        if worker.continue_one() or worker.draw_one():
            continue
        if not (wait and worker.others()):
            return
        stop.wait(_POLL_SECONDS)


class StoppedEarly(Exception):  # noqa: N818
    """A trial was stopped, because its first cycles were worse than those of other trials."""


class _Worker:
    def __init__(
        self, directory: TuningDirectory, studies: Mapping[str, TuningStudy], reporter: ReporterOf, stop: Event
    ) -> None:
        self.directory, self.studies, self.reporter, self.stop = directory, studies, reporter, stop
        self.owner = {"folder": directory.identity, "worker": worker_name()}

    def continue_one(self) -> bool:
        """Continue a trial whose worker has ended. Returns whether there was one."""
        for study in self.studies.values():
            for record in study.records():
                if record.state != "running":
                    continue
                if record.folder == self.directory.identity:
                    if self._train(study, record):
                        return True
                elif time.time() - record.beat > _GONE_SECONDS:
                    study.again(record)
        return False

    def draw_one(self) -> bool:
        """Draw a trial of the method with the fewest, and train it. Returns whether one was missing."""
        counts = {name: self._count(study.records()) for name, study in self.studies.items()}
        name = min(counts, key=counts.__getitem__)
        study = self.studies[name]
        queued = any(record.state == "waiting" for record in study.records())
        if counts[name] >= self.directory.trials and not queued:
            return False
        why = ""
        for _ in range(_MOST_REFUSED):
            record = study.draw(self.owner)
            try:
                self.directory.tuning.trial(name, record.settings)
            except SwampError as error:
                why = str(error)
                study.refuse(record.number, why)
                continue
            earlier = study.records()[: record.number]
            if self._count(earlier) >= self.directory.trials:
                # Two workers drew the last trial at the same time.
                study.refuse(record.number, "one more than was asked for")
                return True
            return self._train(study, record)
        raise SwampError(f"{_MOST_REFUSED} settings in a row that the ranges allow are not possible; the last: {why}")

    def others(self) -> bool:
        """Whether other workers have trials in progress."""
        return any(record.state in ("running", "waiting") for one in self.studies.values() for record in one.records())

    def _count(self, records: list[TrialRecord]) -> int:
        return sum(record.counts for record in records)

    def _train(self, study: TuningStudy, record: TrialRecord) -> bool:
        """Train a trial to its end. Returns False if another process works on it, or it has ended."""
        runs, name = self.directory.runs_of(study.method), trial_name(record.number)
        with runs.claimed(name) as mine:
            if not mine or study.record(record.number).state != "running":
                return False
            study.claim(record.number, self.owner)
            config = self.directory.tuning.trial(study.method, record.settings)
            judge = _Judge(study, record.number, config)
            _require_own(runs.path / name, config)
            with _beating(study, record.number):
                return self._settle(study, record.number, lambda: self._run(config, runs.path / name, judge))

    def _settle(self, study: TuningStudy, number: int, run: Callable[[], dict[str, Any]]) -> bool:
        """Run a trial, and record how it ended. Returns False if another process has locked its directory."""
        try:
            done = run()
        except StoppedEarly:
            study.stop(number)
        except (Interrupted, StorageError):
            raise
        except RunLocked:
            return False
        except SwampError as error:
            if isinstance(error, ResourceExhausted) and "out of memory" not in str(error):
                raise  # the disk: the next trial would fail like this one, which is continued later
            study.fail(number, str(error))
            self._require_some(study)
        else:
            value = done["cycles"][-1]["validation"][study.tuning.metric]
            study.finish(number, float("nan") if value is None else value)
        return True

    def _require_some(self, study: TuningStudy) -> None:
        ended = [record for record in study.records() if record.ended]
        if len(ended) >= _ALL_FAILED and all(record.state == "failed" for record in ended):
            raise SwampError(f"all trials of {study.method} failed so far ({len(ended)}). The last: {ended[-1].why}")

    def _run(self, config: RunConfig, path: Path, judge: Reporter) -> dict[str, Any]:
        begun = RunDirectory(path).config.exists()
        with Reporters(self.reporter(config, path), judge) as shown:
            return resume(path, shown, self.stop) if begun else start(config, path, shown, self.stop)


def _require_own(path: Path, config: RunConfig) -> None:
    file = RunDirectory(path).config
    if file.exists() and (other := differences(RunConfig.load(file), config)):
        raise SwampError(
            f"{path} holds the run of another trial ({'; '.join(other)}): the folder belongs to another storage. "
            "Give that --storage, or another --out."
        )


class _Judge(Reporter):
    """Reports the metric of each cycle of a trial, and stops it if it is worse than others.

    Trials with another prune fraction have other sparsities: the metric is interpolated, linearly in the logarithm of
    the density, at the densities of the recipe's cycles.
    """

    def __init__(self, study: TuningStudy, number: int, config: RunConfig) -> None:
        self.study, self.number = study, number
        self.densities = config.plan.schedule().densities
        self.rungs = study.tuning.base_of(study.method).plan.schedule().densities
        self.values: list[float] = []

    def finished(self, cycle: Cycle) -> None:
        """Report a cycle."""
        assert cycle.metrics.validation is not None
        self.values.append(cycle.metrics.validation[self.study.tuning.metric])
        for step, value in reached_rungs(self.rungs, self.densities, self.values):
            self.study.report(self.number, step, value)
        if cycle.index < len(self.densities) - 1 and self.study.hopeless(self.number):
            raise StoppedEarly


def reached_rungs(
    rungs: tuple[float, ...], densities: tuple[float, ...], values: list[float]
) -> Generator[tuple[int, float]]:
    """Yield (number of the rung from 1, metric) of the rungs that the last cycle has passed.

    Args:
        rungs: Densities at which trials are compared, falling.
        densities: Densities of the cycles of the trial, falling.
        values: Metric of the cycles that are finished.

    Examples:
        >>> [*reached_rungs((1.0, 0.5, 0.25), (1.0, 0.25), [0.75, 0.25])]
        [(2, 0.5), (3, 0.25)]
    """
    index = len(values) - 1
    here = densities[index]
    before = densities[index - 1] if index else math.inf
    for number, rung in enumerate(rungs, 1):
        if not here <= rung * _EQUAL < before:
            continue
        share = math.log(rung / here) / math.log(before / here) if index else 0.0
        if share < _ROUNDING:
            yield number, values[index]
        else:
            yield number, values[index] + share * (values[index - 1] - values[index])


@contextmanager
def _beating(study: TuningStudy, number: int) -> Generator[None]:
    """Give signs of life inside the block, for workers in other folders."""
    over = Event()

    def beat() -> None:
        while not over.wait(_BEAT_SECONDS):
            # The next beat may reach the storage again.
            with contextlib.suppress(Exception):
                study.beat(number)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
