"""A worker: takes the runs of a study one after the other, until none is left that it may take."""

import traceback
from threading import Event

from swamp.errors import Interrupted, RunLocked, SwampError, as_swamp_error
from swamp.runs.config import RunConfig, differences
from swamp.runs.execute import resume, start
from swamp.runs.progress import Reporter
from swamp.runs.study_directory import StudyDirectory

_POLL_SECONDS = 2.0


def work(study: StudyDirectory, reporter: Reporter, stop: Event, *, wait: bool = False) -> None:
    """Finish every run of `study` that nobody else works on; one that an earlier worker left is gone on with.

    A run that fails is recorded as failed, and the next is taken. wait: stay for the runs that others hold, and take
    over those that they leave. Raises Interrupted once `stop` is set; the run in progress is saved.
    """
    while True:
        held = False
        for name in study.runs:
            if stop.is_set():
                raise Interrupted("stopped.")
            if study.over(name):
                continue
            with study.claimed(name) as mine:
                # Between the look and the claim, another worker may have finished it.
                taken = mine and (study.over(name) or _settle(study, name, reporter, stop))
            held |= not taken
            if taken:
                # From the top: what was abandoned meanwhile comes before what nobody began.
                break
        else:
            if not (held and wait):
                return
            stop.wait(_POLL_SECONDS)


def _settle(study: StudyDirectory, name: str, reporter: Reporter, stop: Event) -> bool:
    """Bring a run to its end, good or bad; False where somebody holds it who is no worker of a study."""
    try:
        _execute(study, name, reporter, stop)
    except Interrupted:
        raise
    except RunLocked:
        return False
    except Exception as error:
        # Bad input, memory that ran out, or a fault of ours: it must not take the other runs along, nor be lost.
        told = as_swamp_error(error)
        study.fail(name, told or error, str(told) if told else "".join(traceback.format_exception(error)))
    return True


def _execute(study: StudyDirectory, name: str, reporter: Reporter, stop: Event) -> None:
    run, config = study.run(name), study.runs[name]
    _require_own(study, name)
    if run.config.exists():
        resume(run.path, reporter, stop)
    else:
        start(config, run.path, reporter, stop)


def _require_own(study: StudyDirectory, name: str) -> None:
    run = study.run(name)
    other = differences(RunConfig.load(run.config), study.runs[name]) if run.config.exists() else []
    if other:
        raise SwampError(f"{run.path} holds another run than the study's ({'; '.join(other)}). Move it away.")
