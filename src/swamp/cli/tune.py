"""swamp tune."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from shlex import quote
from threading import Event
from typing import TYPE_CHECKING, Annotated

import tyro

from swamp.cli.run import recipe_or_config
from swamp.cli.session import Err, Out, parse, print_json, stoppable, warnings_to
from swamp.cli.workers import WorkerArgs, local_workers, stop_with_parent, tell_faults
from swamp.datasets import refuse_unread
from swamp.errors import Interrupted, SwampError, need, unknown
from swamp.fields import check_at_least
from swamp.recipes import RECIPES, STUDIES, configuration
from swamp.report.statistics import ReportMetric
from swamp.report.tables import Table, print_table
from swamp.runs.config import RunConfig, changed_options
from swamp.runs.execute import prepare
from swamp.runs.run_progress import Reporter
from swamp.runs.study import Study
from swamp.tracking.tracker import chosen_trackers
from swamp.tracking.tracking_reporter import tracked
from swamp.training.own_evaluation import lower_is_better
from swamp.tuning.search_space import SearchRange, parse_range, range_of, shown_value
from swamp.tuning.tuning_directory import EarlyStopping, TuningDirectory, TuningPlan, check_tuning, is_tuning

if TYPE_CHECKING:
    from swamp.tuning.optuna_studies import TuningStudy
    from swamp.tuning.tuning_results import MethodResult

_LOOK_SECONDS = 0.5
_STORAGE = "SWAMP_TUNE_STORAGE"
"""Environment variable that hands the storage, which may have a password, to worker processes."""
_USUAL = ("lr", "weight-decay", "swa-lr", "swa-fraction")
"""Options that are searched if none is named; methods ignore those that they do not use."""


@dataclass(frozen=True)
class TuneArgs:
    """Search for the best options of a method: trials of equal training cost, judged on validation data only.

      swamp tune digits-mlp --search lr                            the learning rate, in a range around the recipe's
      swamp tune digits-mlp --search lr=0.01..1:log particles=1,2,4 --trials 30
      swamp tune digits-mlp --methods imp swamp --search lr        each method by itself, with as many trials
      swamp tune STUDY.toml --parallel 4                           ranges from [search] of a file (docs/howto/tune.md)
      swamp tune tunings/NAME --trials 100                         continue, with more trials

    A range is OPTION=LOW..HIGH, with :log for a logarithmic scale or :step=S; OPTION=A,B,C; or OPTION alone for a
    default range. Options are those of swamp run by name. Every trial costs as much as the recipe: if a searched option
    changes the cost (particles, prune-fraction, cycles, ticket-epochs, sam), the trial trains for fewer or more epochs.
    Test data is not read. After each cycle, trials that are worse than others at the same sparsity are stopped.

    Each trial is a run directory. A killed worker's trial is continued when the command is repeated, here or on another
    machine with the same --storage. The result, best-METHOD.json, is for swamp run --config. Needs Optuna:
    pip install 'swamp[tune]'.

    All options of swamp run are available for values that stay fixed. The defaults shown are those of the recipe.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    search: tuple[str, ...] = ()
    """Options to search, each with its range (default: lr weight-decay swa-lr swa-fraction)."""
    methods: tuple[str, ...] = ()
    """Methods to tune, each by itself, with the same number of trials (default: the recipe's method)."""
    trials: int = 50
    """Number of trials of each method, with those of earlier sessions."""
    metric: str = ""
    """Metric on validation data that decides (default: accuracy, or the first metric of the task)."""
    early_stopping: EarlyStopping = "halving"
    """How bad trials are stopped: asynchronous successive halving, Hyperband, or none."""
    grace: int = 0
    """Number of cycles before a trial may be stopped (0: a third of them, at least 2)."""
    storage: str = ""
    """Where trials are recorded (default: a journal file in the folder): FILE for a journal, FILE.db for SQLite, or
    postgresql://USER@HOST/DATABASE to share them among machines."""
    out: Path | None = None
    """Folder of the trials and results (default: tunings/NAME)."""
    parallel: int = 1
    """Number of worker processes on this machine, each with one trial at a time; 0: only show the results so far."""
    wait: bool = False
    """Wait for trials of workers on other machines, and continue those that they leave."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""
    quiet: bool = False
    """Show no progress."""


TUNE_HELP = {
    "Search": ("search", "methods", "trials", "metric", "early_stopping", "grace"),
    "Where": ("storage", "out", "parallel", "wait"),
    "Recipe, task and model": ("recipe", "task", "model", "examples"),
    "Values that stay fixed": ("sparsity", "particles", "epochs", "batch_size", "lr", "optimizer"),
    "Run": ("seed", "device", "backend", "json", "quiet"),
}
"""Options of `swamp tune --help`."""


@dataclass(frozen=True)
class _Source:
    """What the first argument gives: a recipe, the file of a study, or the folder of a tuning."""

    given: TuneArgs
    """Defaults of all options."""
    ranges: tuple[SearchRange, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict[str, str])
    """Dotted field that is set -> where."""
    name: str = ""
    """Name of the folder; empty: made from the settings."""
    folder: TuningDirectory | None = None


def tune_command(arguments: Sequence[str]) -> None:
    """swamp tune [STUDY|RECIPE|FOLDER]."""
    if arguments[:1] == ["--worker"]:
        _worker(parse(WorkerArgs, "swamp tune --worker", arguments[1:]))
        return
    source, rest = _source(_joined(arguments, ("--search", "--methods")))
    given = parse(TuneArgs, "swamp tune", rest, source.given, TUNE_HELP)
    need("optuna", "swamp[tune]")
    with warnings_to(Err):
        directory, storage = _directory(given, source, rest)
    stop = Event()
    with stoppable(stop, Err if given.json else Out):
        results = _until_over(directory, storage, given, stop)
    _finish(directory, results, given)


def _worker(given: WorkerArgs) -> None:
    from swamp.tuning.trials import work_on_trials

    stop = Event()
    stop_with_parent(stop)
    directory = TuningDirectory.open(given.folder)
    storage = os.environ.get(_STORAGE) or directory.storage
    with stoppable(stop), warnings_to(Err):
        work_on_trials(directory, storage, partial(tracked, Reporter()), stop, wait=given.wait)


def _source(arguments: Sequence[str]) -> tuple[_Source, list[str]]:
    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    path = Path(name)
    if name and is_tuning(path):
        folder = TuningDirectory.open(path)
        tuning = folder.tuning
        given = TuneArgs(
            tuning.base,
            methods=tuning.methods,
            trials=folder.trials,
            metric=tuning.metric,
            early_stopping=tuning.early_stopping,
            grace=tuning.grace,
            out=path,
        )
        return _Source(given, tuning.search, folder=folder), list(arguments[1:])
    if path.suffix == ".toml" or name in STUDIES:
        study = STUDIES[name]() if name in STUDIES else Study.load(path)
        config, methods = study.to_tune(configuration, name)
        ranges = tuple(range_of(key, value, config, f"{name}, [search]") for key, value in study.search.items())
        fixed = dict.fromkeys(study.set_options(name), f"under [settings] of {name}")
        return _Source(TuneArgs(config, methods=methods), ranges, fixed, path.stem), list(arguments[1:])
    if name and name not in RECIPES:
        raise SwampError(f"{unknown('recipe', name, RECIPES)} Or give a TOML file, or the folder of a tuning.")
    config, rest = recipe_or_config(arguments)
    return _Source(TuneArgs(config)), rest


def _directory(given: TuneArgs, source: _Source, rest: Sequence[str]) -> tuple[TuningDirectory, str]:
    """The folder of the tuning, started or joined, and the storage. Raises every error of the options."""
    check_at_least(given, 1, "trials")
    check_at_least(given, 0, "parallel", "grace")
    tuning = _tuning(given, source, rest)
    chosen_trackers(tuning.base.track)
    path = given.out or Path("tunings") / (source.name or tuning.name)
    from swamp.tuning.optuna_studies import open_storage, shown_storage

    storage = given.storage or (source.folder.storage if source.folder else str(path / "trials.journal"))
    if "***" in storage:
        raise SwampError(f"the storage {storage} needs its password, which is not stored: give --storage again.")
    # Before the folder is written, which then belongs to this storage.
    open_storage(storage)
    return TuningDirectory.join(path, tuning, shown_storage(storage), given.trials), storage


def _tuning(given: TuneArgs, source: _Source, rest: Sequence[str]) -> TuningPlan:
    flags = {word.partition("=")[0].replace("_", "-") for word in rest if word.startswith("--")}
    methods = tuple(name.strip() for text in given.methods for name in text.split(",") if name.strip())
    if "--method" in flags and "--methods" in flags:
        raise SwampError("give --method or --methods, not both.")
    methods = (given.config.plan.method,) if "--method" in flags or not methods else methods
    config = replace(given.config, plan=replace(given.config.plan, method=methods[0]))
    in_study = (name.rpartition(".")[2] for name in source.fixed)
    refuse_unread(config.task, [*in_study, *changed_options(source.given.config, config)])
    ranges = [*source.ranges, *(parse_range(text, config) for text in given.search)]
    for index, one in enumerate(ranges):
        where = f"on the command line (--{one.option})" if f"--{one.option}" in flags else source.fixed.get(one.field)
        if where:
            raise SwampError(f"{one.option} is searched ('{one}'), and also set {where}. Leave one of the two out.")
        if one.field in (other.field for other in ranges[:index]):
            raise SwampError(f"{one.option} is searched twice ('{one}'). Give one range.")
    if not ranges:
        ranges = [parse_range(name, config) for name in _USUAL if f"--{name}" not in flags]
    metric, higher = (given.metric, source.folder.tuning.higher) if source.folder else _metric(config, given.metric)
    tuning = TuningPlan(config, methods, tuple(ranges), metric, higher, given.early_stopping, given.grace)
    tuning = _with_used(tuning) if not (source.ranges or given.search) else tuning
    check_tuning(tuning)
    return tuning


def _with_used(tuning: TuningPlan) -> TuningPlan:
    """Of the ranges that nobody asked for, those that some method uses."""
    used = {one.field for method in tuning.methods for one in tuning.ranges_of(method)}
    return replace(tuning, search=tuple(one for one in tuning.search if one.field in used))


def _metric(config: RunConfig, given: str) -> tuple[str, bool]:
    """The metric that decides, and whether higher is better. Raises every error of the data and the model."""
    problem, model = prepare(replace(config, test_data=False))
    task = problem.task
    names = list(task.metrics) if task.own is None else [*task.evaluate(model, "validation").metrics]
    if given and given not in names:
        raise unknown("metric", given, names)
    metric = given or ("accuracy" if "accuracy" in names else names[0])
    if task.own is not None and metric == names[0]:
        return metric, task.own.higher(metric)
    return metric, not lower_is_better(metric)


def _until_over(directory: TuningDirectory, storage: str, given: TuneArgs, stop: Event) -> "list[MethodResult]":
    """Start the workers, show the trials until the workers end, and return the results."""
    from swamp.cli.tune_progress import TuningProgress
    from swamp.tuning.trials import open_studies
    from swamp.tuning.tuning_results import results_of

    studies = open_studies(directory, storage)
    missing = sum(max(0, directory.trials - _ended(study)) for study in studies.values())
    shown = nullcontext() if given.quiet else TuningProgress(directory, Err if given.json else Out)
    devices = {directory.tuning.base.device}
    workers = local_workers(
        "tune",
        directory.path,
        min(given.parallel, missing),
        devices,
        wait=given.wait,
        environment={_STORAGE: storage},
    )
    with workers as processes, shown as watch:
        while True:
            ended = processes.ended()
            if watch:
                watch.show({name: study.records() for name, study in studies.items()})
            if ended or stop.wait(_LOOK_SECONDS):
                break
    if stop.is_set():
        raise Interrupted("stopped; finished work is saved. Repeat the command to continue.")
    waiting = any(_ended(study) < directory.trials for study in studies.values())
    tell_faults(processes.faults(), waiting=waiting)
    return results_of(directory.tuning, studies)


def _ended(study: "TuningStudy") -> int:
    return sum(record.ended for record in study.records())


def _finish(directory: TuningDirectory, results: "Sequence[MethodResult]", given: TuneArgs) -> None:
    from swamp.tuning.tuning_results import result_json, write_results

    files = write_results(directory, results)
    if given.json:
        print_json(
            {
                "tuning": str(directory.path),
                "storage": directory.storage,
                "metric": directory.tuning.metric,
                "methods": {result.method: result_json(directory, result) for result in results},
                **{kind: [str(path) for path in paths] for kind, paths in files.items()},
            }
        )
    else:
        _print(directory, results, files)
    lacking = [result.method for result in results if result.best is None]
    if given.parallel and lacking:
        error = SwampError(f"no trial of {', '.join(lacking)} is finished. See {directory.path / 'trials.csv'}.")
        error.exit_code = 3
        raise error


def _print(directory: TuningDirectory, results: "Sequence[MethodResult]", files: Mapping[str, Sequence[Path]]) -> None:
    tuning = directory.tuning
    metric = ReportMetric(tuning.metric)
    rows = tuple(_row(directory, result, metric) for result in results)
    options = tuple(one.option for one in tuning.search)
    headings = ("method", "trials", "stopped early", "failed", f"validation {metric.heading}", *options, "epochs")
    below = "Each trial costs as much training as the recipe, which sets the epochs; test data was not read."
    Out.print()
    print_table(Table("Best setting of each method", headings, rows, below), Out)
    known = [result for result in results if result.importance]
    if known:
        shares = tuple(
            (
                one.method,
                *(f"{100 * one.importance[name]:.0f} %" if name in one.importance else "–" for name in options),
            )
            for one in known
        )
        print_table(Table("Importance of the options", ("method", *options), shares), Out)
    Out.print(f"written: {' '.join(str(path) for paths in files.values() for path in paths)}", soft_wrap=True)
    for path in files["configs"]:
        Out.print(
            f"Measure it on test data, with new seeds: swamp run --config {quote(str(path))} --seed 1", soft_wrap=True
        )


def _row(directory: TuningDirectory, result: "MethodResult", metric: ReportMetric) -> tuple[str, ...]:
    counts, tuning = result.counts, directory.tuning
    ended = sum(counts[state] for state in ("finished", "stopped", "failed"))
    start = (result.method, f"{ended} of {directory.trials}", str(counts["stopped"]), str(counts["failed"]))
    if result.best is None or result.best.value is None:
        return (*start, *["–"] * (len(tuning.search) + 2))
    settings = result.best.settings
    chosen = (shown_value(settings[one.option]) if one.option in settings else "–" for one in tuning.search)
    epochs = tuning.best(result.method, settings).training.epochs
    return (*start, metric.show(result.best.value), *chosen, str(epochs))


def _joined(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """The arguments with all values of a repeated option after one mention of it, at the end."""
    rest: list[str] = []
    values: dict[str, list[str]] = {option: [] for option in options}
    current = ""
    for word in arguments:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            current = name if name in values else ""
            if current and equals:
                values[current].append(value)
            elif not current:
                rest.append(word)
        elif current:
            values[current].append(word)
        else:
            rest.append(word)
    for option, found in values.items():
        rest += [option, *found] if found or option in arguments else []
    return rest
