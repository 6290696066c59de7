"""The trials of a tuning as studies of Optuna: storage, drawing, early stopping. This module imports optuna."""

import math
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from swamp.errors import SwampError, as_swamp_error, first_line, warn
from swamp.training import Seed
from swamp.tuning.search_space import OptionValue, SearchRange
from swamp.tuning.tuning_directory import TuningPlan

_T = TypeVar("_T")
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between attempts to reach a storage."""
_CONNECT_SECONDS = 10
_LOCKED_SECONDS = 60
"""How long SQLite waits for another process that writes."""
_FORMAT = 1
_REDUCTION = 2
"""Of the trials that reach a rung, one in so many goes on."""
_NEVER_STOPPED = 5
"""Trials that must have ended before one is stopped: alone, halving would let only the best so far go on."""
_KEY = "swamp"
_SCHEMES = "a file name, sqlite:///FILE or postgresql://USER@HOST/DATABASE"

optuna.logging.set_verbosity(optuna.logging.ERROR)

TrialStatus = Literal["finished", "stopped", "failed", "running", "waiting", "refused"]


class StorageError(SwampError):
    """A storage that cannot be reached or used. Finished work is kept."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial, as the storage has it."""

    number: int
    state: TrialStatus
    """stopped: early. failed: its training diverged or ended with an error. refused: not possible, not counted."""
    settings: Mapping[str, OptionValue]
    """Option -> value."""
    value: float | None
    """Metric on validation data after the last cycle; None if it is not finished."""
    cycles: Mapping[int, float]
    """Number of cycles of the recipe -> the metric at the sparsity after them."""
    folder: str
    """Identity of the folder with its run directory."""
    worker: str
    why: str
    """Why it failed or was refused."""
    beat: float
    """Time of its last sign of life, in seconds since 1970."""
    seconds: float
    """Duration of a trial that has ended."""

    @property
    def counts(self) -> bool:
        """Whether it is one of the trials that were asked for."""
        return self.state != "refused"

    @property
    def ended(self) -> bool:
        """Whether it is finished, stopped or failed."""
        return self.state in ("finished", "stopped", "failed")


class TuningStudy:
    """The trials of one method.

    Every call is repeated if the storage cannot be reached. Raises SwampError if it stays so, or if the storage is of
    another version.
    """

    def __init__(self, tuning: TuningPlan, method: str, storage: BaseStorage, where: str) -> None:
        self.tuning, self.method, self.where = tuning, method, where
        self.distributions = {one.option: _distribution(one) for one in tuning.ranges_of(method)}
        self.study = self._patiently(lambda: self._opened(storage))

    def _opened(self, storage: BaseStorage) -> optuna.Study:
        tuning, cycles = self.tuning, len(self.tuning.base_of(self.method).plan.schedule())
        study = optuna.create_study(
            storage=storage,
            study_name=f"swamp-{tuning.digest}-{self.method}",
            direction="maximize" if tuning.higher else "minimize",
            sampler=_SeededByTrial(Seed(tuning.base.plan.seed).at("tuning", self.method), tuning.first(self.method)),
            pruner=_pruner(tuning.early_stopping, tuning.grace_of(cycles), cycles),
            load_if_exists=True,
        )
        stated = study.user_attrs.get(_KEY)
        if stated is None:
            study.set_user_attr(_KEY, {"format": _FORMAT, "method": self.method, **tuning.to_json()})
        elif stated.get("format") != _FORMAT:
            raise StorageError(
                f"{self.where} has trials in format {stated.get('format')}, and this version of swamp reads format "
                f"{_FORMAT}. Use the version that began the tuning, or another --storage."
            )
        return study

    def records(self) -> list[TrialRecord]:
        """All trials, in the order in which they were drawn."""
        return [*map(_record, self._patiently(lambda: self.study.get_trials(deepcopy=False)))]

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        return self.records()[number]

    def draw(self, owner: Mapping[str, Any]) -> TrialRecord:
        """Begin a new trial. owner: its folder and worker."""

        def drawn() -> int:
            trial = self.study.ask(self.distributions)
            for name, value in {**owner, "beat": time.time()}.items():
                trial.set_user_attr(name, value)
            return trial.number

        return self.record(self._patiently(drawn))

    def again(self, record: TrialRecord) -> None:
        """Put a trial whose worker is gone, with its run directory, back into the queue; once."""
        if self._tell(record.number, TrialState.FAIL, why="its worker ended; trained again"):
            self._patiently(lambda: self.study.enqueue_trial(dict(record.settings)))

    def claim(self, number: int, owner: Mapping[str, Any]) -> None:
        """State who works on a trial now."""
        for name, value in owner.items():
            self._patiently(lambda name=name, value=value: self._trial(number).set_user_attr(name, value))

    def beat(self, number: int) -> None:
        """Record that the trial is still in progress; not repeated if the storage cannot be reached."""
        self._trial(number).set_user_attr("beat", time.time())

    def report(self, number: int, cycle: int, value: float) -> None:
        """Record the metric after `cycle` cycles of the recipe."""

        def reported() -> None:
            if cycle not in self.study.get_trials(deepcopy=False)[number].intermediate_values:
                self._trial(number).report(value, cycle)

        self._patiently(reported)

    def hopeless(self, number: int) -> bool:
        """Whether a trial should be stopped early, by its metric at the last rung; not before a few have ended."""
        # Asked in any case, as Optuna notes here what the trial reached.
        worse = self._patiently(lambda: self._trial(number).should_prune())
        return worse and sum(record.ended for record in self.records()) >= _NEVER_STOPPED

    def finish(self, number: int, value: float) -> bool:
        """End a trial with its metric. False if another worker has ended it."""
        if not math.isfinite(value):
            return self.fail(number, f"{self.tuning.metric} is not finite")
        return self._tell(number, TrialState.COMPLETE, value)

    def stop(self, number: int) -> bool:
        """End a trial early."""
        return self._tell(number, TrialState.PRUNED)

    def fail(self, number: int, why: str) -> bool:
        """End a trial that diverged or failed; it counts, as the worst."""
        return self._tell(number, TrialState.PRUNED, why=why)

    def refuse(self, number: int, why: str) -> bool:
        """End a trial whose settings are not possible together; it does not count."""
        return self._tell(number, TrialState.FAIL, why=why)

    def importance(self) -> dict[str, float]:
        """Option -> its share of what separates good from other finished trials (PED-ANOVA), largest first.

        Empty with fewer than four finished trials, or if all have the same metric.
        """
        values = [one.value for one in self.records() if one.state == "finished"]
        if len(values) < 4 or len(set(values)) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        with warnings.catch_warnings(action="ignore"):
            found = self._patiently(lambda: optuna.importance.get_param_importances(self.study, evaluator=evaluator))
        return {name: float(share) for name, share in found.items()}

    def _trial(self, number: int) -> Trial:
        # The identifiers of trials in a database are not their numbers.
        return Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)  # pyright: ignore[reportPrivateUsage]

    def _tell(self, number: int, state: TrialState, value: float | None = None, why: str = "") -> bool:
        def told() -> bool:
            if self.study.get_trials(deepcopy=False)[number].state.is_finished():
                return False
            if why:
                self._trial(number).set_user_attr("why", why)
            self.study.tell(number, value, state)
            return True

        return self._patiently(told)

    def _patiently(self, call: Callable[[], _T]) -> _T:
        return patiently(call, self.where)


def patiently(call: Callable[[], _T], where: str) -> _T:
    """The result of `call`, which is repeated a few times if the storage `where` cannot be reached."""
    for wait in (*WAITS, None):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return call()
        except SwampError:
            raise
        except Exception as raised:  # of the database, its driver, SQLAlchemy or Optuna
            # Optuna says "during the commit" of any error of a database.
            error = raised.__cause__ if isinstance(raised, optuna.exceptions.StorageInternalError) else raised
            error = error or raised
            told = _driver_message(error)
            if not _unreachable(error):
                raise _unusable(error, where) or error from None
            if wait is None:
                lost = StorageError(
                    f"the storage {where} cannot be reached: {told}. It was tried {len(WAITS) + 1} times in "
                    f"{sum(WAITS):g} s. Nothing is lost: finished trials are in the storage, and finished cycles of "
                    "the others in their run directories. Repeat the command when the storage can be reached."
                )
                lost.exit_code = 4
                raise lost from error
            reason = f"the storage {where} cannot be reached ({told})"
            if isinstance(error, exc.IntegrityError | exc.ProgrammingError):
                reason = f"another worker wrote to the storage {where} at the same moment"
            warn(f"{reason}; trying again in {wait:g} s.")
            time.sleep(wait)
    raise AssertionError


def shown_storage(storage: str) -> str:
    """The storage without its password; the absolute path of a file."""
    if "://" not in storage:
        return str(Path(storage).absolute())
    try:
        return sqlalchemy.make_url(storage).render_as_string(hide_password=True)
    except (exc.ArgumentError, ValueError) as error:
        raise StorageError(f"--storage {storage} is no address of a database: expected {_SCHEMES}.") from error


def open_storage(storage: str) -> BaseStorage:
    """Open or create a storage: the path of a journal file or of an SQLite file (.db, .sqlite), or an address.

    Raises SwampError if it cannot be reached, is no storage of Optuna, or was made by another version of it.
    """
    where = shown_storage(storage)
    if "://" not in storage:
        path = Path(storage).absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error
        if path.suffix not in (".db", ".sqlite", ".sqlite3"):
            return patiently(lambda: _journal(path), where)
        storage = f"sqlite:///{path}"
    url = sqlalchemy.make_url(storage)
    # A connection for each call: one that was kept would fail after the server was started again.
    options: dict[str, Any] = {"poolclass": NullPool}
    if url.get_backend_name() in ("postgresql", "postgres"):
        # Without a driver in the address, SQLAlchemy would take psycopg2.
        plain = url.drivername in ("postgresql", "postgres")
        url = url.set(drivername="postgresql+psycopg") if plain else url
        options["connect_args"] = {"connect_timeout": _CONNECT_SECONDS}
    elif url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise StorageError(f"--storage {storage} is in memory and would be forgotten: expected {_SCHEMES}.")
    elif url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": _LOCKED_SECONDS}
    address = url.render_as_string(hide_password=False)
    return patiently(lambda: RDBStorage(address, engine_kwargs=options), where)


def _journal(path: Path) -> JournalStorage:
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise _unwritable(path, error) from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise StorageError(
            f"{path} is no journal of Optuna, or it is damaged ({_driver_message(error)}). Give another --storage."
        ) from error


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot write the storage {path}: {error.strerror}. Give another --storage.")


def _unreachable(error: BaseException) -> bool:
    """Whether an error may pass: no connection, or two processes that create the tables at the same time."""
    if isinstance(error, exc.ProgrammingError):
        return "already exists" in str(error)
    if "no such table" in str(error):
        return False  # SQLite has one class of errors for this and for locks
    passing = (exc.OperationalError, exc.InterfaceError, exc.IntegrityError, exc.TimeoutError)
    return isinstance(error, passing) or (isinstance(error, exc.DBAPIError) and error.connection_invalidated)


def _unusable(error: BaseException, where: str) -> SwampError | None:
    """The error for a storage that is reached, but cannot be used."""
    told = _driver_message(error)
    if isinstance(error, ImportError):
        driver = "pip install 'swamp[postgresql]'" if "postgresql" in where else "Install its driver"
        return StorageError(f"the storage {where} needs a driver, which cannot be imported ({told}). {driver}")
    if isinstance(error, exc.NoSuchModuleError | exc.ArgumentError):
        return StorageError(f"--storage {where} is no address of a database ({told}): expected {_SCHEMES}.")
    if isinstance(error, RuntimeError) or type(error).__module__.startswith("alembic"):
        return StorageError(
            f"the storage {where} was made by another version of Optuna, or by another program ({told}). Give another "
            "--storage; or upgrade it, after a backup: optuna storage upgrade --storage ADDRESS"
        )
    if isinstance(error, exc.SQLAlchemyError | optuna.exceptions.StorageInternalError):
        return StorageError(f"the storage {where} is no database of Optuna, or it is damaged ({told}).")
    return as_swamp_error(error)


def _driver_message(error: BaseException) -> str:
    """The message of an error, without the class that SQLAlchemy puts before that of a driver."""
    return re.sub(r"^\([\w.]+\) ", "", first_line(error)).rstrip(".")


def _record(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    why = attributes.get("why", "")
    states: dict[TrialState, TrialStatus] = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "failed" if why else "stopped",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
        TrialState.FAIL: "refused",
    }
    state = states[trial.state]
    begun = 0.0 if trial.datetime_start is None else trial.datetime_start.timestamp()
    return TrialRecord(
        trial.number,
        state,
        dict(trial.params),
        trial.value if state == "finished" else None,
        dict(trial.intermediate_values),
        attributes.get("folder", ""),
        attributes.get("worker", ""),
        why,
        attributes.get("beat", begun),
        trial.duration.total_seconds() if trial.duration else 0.0,
    )


def _distribution(one: SearchRange) -> BaseDistribution:
    if one.choices:
        return CategoricalDistribution(one.choices)
    if one.whole:
        return IntDistribution(int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
    return FloatDistribution(one.low, one.high, log=one.log, step=one.step)


def _pruner(kind: str, grace: int, cycles: int) -> optuna.pruners.BasePruner:
    if kind == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=_REDUCTION)
    if kind == "hyperband":
        return optuna.pruners.HyperbandPruner(grace, max(grace, cycles), _REDUCTION)
    return optuna.pruners.NopPruner()


class _SeededByTrial(BaseSampler):
    """TPE (Bergstra et al. 2011), with random numbers that depend on the seed and the number of the trial only.

    So a tuning that is continued draws what it would have drawn without the interruption. The first trial has given
    values, if there are any.
    """

    def __init__(self, seed: Seed, first: Mapping[str, OptionValue] | None) -> None:
        self.seed, self.first = seed, first

    def _of(self, trial: FrozenTrial) -> TPESampler:
        return TPESampler(seed=self.seed.at(trial.number).number() % 2**32)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self.first is not None and trial.number == 0:
            return {}
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if self.first is not None and trial.number == 0:
            return self.first[param_name]
        sampler = TPESampler(seed=self.seed.at(trial.number, param_name).number() % 2**32)
        return sampler.sample_independent(study, trial, param_name, param_distribution)
