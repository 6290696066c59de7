"""swamp study."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from threading import Event
from typing import Any, Literal, get_args

import tyro

from swamp.cli.compare import made_by_of
from swamp.cli.session import Err, Out, parse, print_json, print_labelled, stoppable
from swamp.cli.study_progress import StudyProgress, counted, failures
from swamp.cli.workers import WorkerArgs, local_workers, stop_with_parent, submit, tell_faults, work_here
from swamp.errors import Interrupted, SwampError, shortened, unknown
from swamp.fields import check_at_least
from swamp.recipes import STUDIES, configuration
from swamp.runs.study import Study
from swamp.runs.study_queue import RunState, RunStatus, StudyDirectory, is_study
from swamp.tracking.tracker import chosen_trackers

_LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class StudyArgs:
    """Run many configurations: a grid of methods, seeds and settings. Finished runs are skipped, others resumed.

    swamp study STUDY.toml --workers 4               start, continue, or join from another machine
    swamp study studies/STUDY --workers 0            only show the progress (--wait: until the end)
    swamp study demo                                 a predefined study, see swamp list studies
    """

    study: tyro.conf.Positional[str]
    """A TOML file (see docs/howto/study.md), the name of a predefined study, or the folder of an existing one."""
    out: Path | None = None
    """Folder of the study (default: studies/NAME)."""
    workers: int = 1
    """Number of worker processes, each with one run at a time; 0: only show the progress."""
    wait: bool = False
    """Wait until every run is finished or failed, also runs of workers on other machines."""
    retry: bool = False
    """Try failed runs again."""
    submit: Literal["slurm", "local"] | None = None
    """Submit the workers as jobs: to Slurm, or as detached processes on this machine."""
    job: tuple[str, ...] = ()
    """Job options as KEY=VALUE: timeout_min=600 slurm_partition=gpu gpus_per_node=1 cpus_per_task=4."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""
    quiet: bool = False
    """Show no progress."""


def study_command(arguments: Sequence[str]) -> None:
    """swamp study STUDY."""
    if arguments[:1] == ["--worker"]:
        _worker(parse(WorkerArgs, "swamp study --worker", arguments[1:]))
        return
    given = parse(StudyArgs, "swamp study", arguments)
    check_at_least(given, 0, "workers")
    study = _joined(given.study, given.out)
    if given.retry:
        study.retry()
    jobs: list[str] = []
    if given.submit:
        jobs = submit(study, given.submit, max(1, given.workers), given.job, wait=given.wait)
    states = _until_over(study, 0 if given.submit else given.workers, given)
    written = _compared(study, states, show=not given.json) if given.workers and not given.submit else []
    if given.json:
        print_json({"study": str(study.path), **_outcome(study, states), "jobs": jobs, "comparison": written})
    else:
        _print_outcome(study, states, jobs, written)
    failed = [state.name for state in states if state.state == "failed"]
    if failed:
        error = SwampError(f"{len(failed)} of {len(states)} runs failed: {shortened(failed)}. Try again with --retry.")
        error.exit_code = 3
        raise error


def _joined(given: str, out: Path | None) -> StudyDirectory:
    path = Path(given)
    if is_study(path) or (path.is_dir() and given not in STUDIES):
        if out is None or out.resolve() == path.resolve():
            return StudyDirectory.open(path)
        if given not in STUDIES:
            raise SwampError(f"{given} is the folder of a study, which cannot have another --out. Give its TOML file.")
    if path.suffix == ".toml" or path.is_file():
        study, name = Study.load(path), path.stem
    elif given in STUDIES:
        study, name = STUDIES[given](), given
    else:
        raise SwampError(f"{unknown('study', given, STUDIES)} Or give a TOML file or the folder of a study.")
    runs = study.configurations(configuration, given)
    for config in runs.values():
        chosen_trackers(config.track)  # raises for a library that is missing
    return StudyDirectory.join(out or Path("studies") / name, runs, study.compare)


def _worker(given: WorkerArgs) -> None:
    stop = Event()
    stop_with_parent(stop)
    with stoppable(stop):
        work_here(given.folder, wait=given.wait, stop=stop)


def _until_over(study: StudyDirectory, workers: int, given: StudyArgs) -> list[RunState]:
    """Start the workers, show the states of runs until the workers end, and return the final states."""
    stop = Event()
    workers = min(workers, sum(not study.over(name) for name in study.runs))
    console = Err if given.json else Out
    shown = nullcontext() if given.quiet else StudyProgress(study, console)
    with stoppable(stop, console):
        devices = {config.device for config in study.runs.values()}
        with local_workers("study", study.path, workers, devices, wait=given.wait) as processes, shown as watch:
            while True:
                ended = processes.ended()
                states = study.states()
                if watch:
                    watch.show(states)
                unfinished = any(state.state in ("running", "waiting") for state in states)
                if ended and not (given.wait and unfinished and not workers):
                    break
                if stop.wait(_LOOK_SECONDS):
                    break
        if stop.is_set():
            raise Interrupted("stopped; finished work is saved. Run the same command to continue.")
        tell_faults(processes.faults(), waiting=any(state.state == "waiting" for state in states))
    return states


def _compared(study: StudyDirectory, states: Sequence[RunState], *, show: bool) -> list[str]:
    """Write a comparison of all finished runs; returns its files, none if it is not possible. show: print it."""
    from swamp.report.comparison import compare
    from swamp.report.run_records import read_run
    from swamp.report.tables import print_comparison
    from swamp.report.write import free_folder, write_comparison

    finished = [study.run(state.name).path for state in states if state.state == "finished"]
    if not finished:
        return []
    try:
        comparison = compare([read_run(path) for path in finished], **asdict(study.compare))
    except SwampError as error:
        print_labelled(Err, "no comparison of all runs:", "yellow", str(error))
        return []
    if show:
        print_comparison(comparison, Out)
    made_by = made_by_of([study.path], study.compare)
    folder = free_folder(study.path / "comparison", made_by)
    return [str(path) for path in write_comparison(comparison, folder, made_by=made_by)]


def _outcome(study: StudyDirectory, states: Sequence[RunState]) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    for state in states:
        runs[state.name] = {name: value for name, value in asdict(state).items() if name != "name" and value != ""}
        if state.state == "finished":
            done = study.summary(state.name)
            runs[state.name] |= {key: done[key] for key in ("sparsity", "test", "seconds")}
    counts = {name: sum(state.state == name for state in states) for name in get_args(RunStatus)}
    return {**counts, "runs": runs}


def _print_outcome(study: StudyDirectory, states: Sequence[RunState], jobs: list[str], comparison: list[str]) -> None:
    def say(text: str) -> None:
        Out.print(text, soft_wrap=True)

    say(f"\n{study.path}: {counted(states)}")
    for text, names in failures(states):
        say(f"  {', '.join(names)} failed: {text}")
    for state in states:
        if state.state == "running":
            say(f"  {state.name}: worker {state.worker} ({state.done:g} of {state.total:g} epochs)")
    if jobs:
        say(f"submitted: {' '.join(jobs)}. Show the progress: swamp study {quote(str(study.path))} --workers 0")
    if comparison:
        say(f"written: {' '.join(comparison)}")
    if any(state.state == "finished" for state in states):
        say(f"Compare the runs: swamp compare {quote(str(study.path))}")
