"""A run directory for a model and a task that are Python objects."""

import hashlib
import json
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from threading import Event
from typing import Any

from torch import nn

from swamp.algorithms import Cycle, Plan, train_on
from swamp.algorithms import loop as engine
from swamp.algorithms.store import Store
from swamp.api.code_text import function_text
from swamp.api.origin import describe, loss_name, origin_differences
from swamp.backends import Backend, Ticket
from swamp.errors import Interrupted, SwampError
from swamp.files import save_tensors
from swamp.masks import Mask
from swamp.references import PYTHON_PREFIX
from swamp.runs import open_run
from swamp.runs.checkpoints import RunStore
from swamp.runs.config import RunConfig, differences
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import append_session, executing, run_summary, write_summary
from swamp.runs.overview import overview
from swamp.runs.read import read_origin, write_config
from swamp.runs.reference_origin import INITIAL
from swamp.runs.run_progress import Reporter
from swamp.runs.validation import check_disk_space
from swamp.scores import SCORES, recorded_score
from swamp.training import Task, Training
from swamp.training.module_extra_state import as_tensors

SNAPSHOT_SECONDS = 30.0
"""Seconds between two snapshots of a training: a killed process loses at most this time."""


@dataclass(frozen=True, eq=False)
class Job:
    """The arguments of one call: what is pruned, and how."""

    model: nn.Module
    task: Task
    plan: Plan
    training: Training
    backend: Backend | str | None
    mask: Mask | None = None
    """Mask of the only cycle of a transfer, which starts at the weights of `model`."""

    def cycles(self, store: Store) -> Iterator[Cycle]:
        """The cycle loop; raises every error of the arguments here."""
        if self.mask is not None:
            masks, start = {0: self.mask}, Ticket(self.model.state_dict(), 0)
            rest = self.plan, self.training
            return train_on(masks, start, self.model, self.task, *rest, backend=self.backend, store=store)
        return engine.cycles(self.model, self.task, self.plan, self.training, backend=self.backend, store=store)

    @cached_property
    def config(self) -> RunConfig:
        """The configuration of the run."""
        named = self.backend if isinstance(self.backend, str) else "auto" if self.backend is None else "sequential"
        config = RunConfig(
            recipe="python",
            task=f"{PYTHON_PREFIX}{loss_name(self.task)}",
            model=f"{PYTHON_PREFIX}{type(self.model).__name__}",
            plan=replace(self.plan, score=self.plan.score and recorded_score(self.plan.score)),
            training=self.training,
            device=str(next(self.model.parameters()).device),
            backend=named,
            snapshot_seconds=SNAPSHOT_SECONDS,
        )
        # Numbers of NumPy as Python's, as the file gives them back.
        return RunConfig.from_json(json.loads(json.dumps(config.to_json(), default=lambda number: number.item())))

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What the model and the task are, in plain values."""
        about = describe(self.model, self.task, self.backend)
        if self.mask is not None:
            about["mask"] = self.mask.digest
        if self.plan.score_name in SCORES:
            about["score"] = function_text(SCORES[self.plan.score_name])
        return json.loads(json.dumps(about))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the run, which every file of its directory states."""
        text = json.dumps([self.config.digest(), self.origin], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def stored_cycles(job: Job, out: Path, reporter: Reporter) -> Iterator[Cycle]:
    """The cycles of a run in the directory `out`: finished ones are read, the others computed and written.

    Raises SwampError here, before any training, if the arguments are not possible or `out` holds another run.
    """
    with warnings.catch_warnings(action="ignore"):  # they come again when the run starts
        job.cycles(Store())
    # The caller's code, which runs between two cycles, may change the working folder.
    return _cycles(job, _directory(job, out.absolute()), reporter)


def _directory(job: Job, out: Path) -> RunDirectory:
    """The directory of the run. Raises SwampError if it holds anything else."""
    new = RunDirectory(out, job.fingerprint)
    if out.exists() and not out.is_dir():
        raise SwampError(f"{out} is a file, and out must be a directory. Choose another name.")
    if not new.config.exists():
        if out.exists() and any(one.name != "lock" and not one.name.startswith(".") for one in out.iterdir()):
            raise SwampError(f"{out} is not empty and holds no run of swamp. Choose another out.")
        return new
    found, config = open_run(out)
    origin = read_origin(found)
    if not config.model.startswith(PYTHON_PREFIX):
        raise SwampError(f"{out} holds a run of the command line. Continue it with: swamp resume {quote(str(out))}")
    initial = str(out / INITIAL)
    # The origin says what was transferred; its directory may have moved, or be named from another folder.
    transfer = replace(job.plan.transfer, source=job.plan.transfer.source and config.plan.transfer.source)
    ours = replace(job.config, plan=replace(job.config.plan, transfer=transfer))
    other = [*differences(config, ours), *origin_differences(origin, job.origin, initial)]
    if other:
        raise SwampError(
            f"{out} holds another run. This call differs in {'; '.join(other)}. To continue that run, call with the "
            "same arguments; or choose another out."
        )
    return found


def _cycles(job: Job, directory: RunDirectory, reporter: Reporter) -> Iterator[Cycle]:
    stop, records = Event(), list[dict[str, Any]]()
    with directory.locked():
        directory = _directory(job, directory.path)
        check_disk_space(directory, job.config, job.model, job.task.train.steps(job.training.batch_size))
        if not directory.config.exists():
            write_config(directory, job.config, job.origin)
        initial = directory.path / INITIAL
        if not initial.exists():
            save_tensors(initial, as_tensors(job.model.state_dict()), directory.provenance(initial))
        append_session(directory, job.config, [])
        store = RunStore(directory, reporter, stop, snapshot_seconds=job.config.snapshot_seconds)
        reporter.started(overview(job.config, job.task, job.model))
        # The caller's code runs between two cycles: threads, determinism and Ctrl-C are then as the caller set them.
        with _computing(job, directory, stop):
            cycles = job.cycles(store)
        while True:
            with _computing(job, directory, stop):
                cycle = next(cycles, None)
            if cycle is None:
                break
            records.append(cycle.to_json())
            yield cycle
        write_summary(directory, run_summary(directory, job.config, records))


@contextmanager
def _computing(job: Job, directory: RunDirectory, stop: Event) -> Generator[None]:
    """Settings of torch for a run; the first Ctrl-C saves all trainings at the next step and raises KeyboardInterrupt.

    Handlers that the caller installed stay in place.
    """
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def asked(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if ours:
        signal.signal(signal.SIGINT, asked)
    try:
        with executing(job.config):
            yield
    except Interrupted as error:
        raise KeyboardInterrupt(f"stopped and saved in {directory.path}; the same call again continues.") from error
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
