"""Workers of a study: as processes of this machine, or as jobs of a cluster."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch

from swamp.cli.progress import Quiet
from swamp.cli.session import Err, warnings_to
from swamp.errors import SwampError
from swamp.runs import StudyDirectory, work

_LOGS = ".workers"
_GOOD = (0, 130, 143)
"""Exit codes of a worker that is through, or was asked to stop."""


@dataclass
class Workers:
    """Processes of this command that work on one study."""

    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]

    def ended(self) -> bool:
        """Whether none works any more."""
        return all(process.poll() is not None for process in self.processes)

    def stop(self) -> None:
        """Ask them to save and stop: they do when their standard input ends, and so too if this process is killed."""
        for process in self.processes:
            if process.stdin:
                process.stdin.close()

    def faults(self) -> list[str]:
        """How workers ended that did not end well, each with the last words of its log."""
        found: list[str] = []
        for process, log in zip(self.processes, self.logs, strict=True):
            code = process.wait()
            if code < 0:
                found.append(f"worker {process.pid} was killed by signal {-code}.")
            elif code not in _GOOD:
                words = log.read_text(errors="replace").strip()[-2000:]
                found.append(f"worker {process.pid} ended with exit code {code}: {words or 'it said nothing'}")
        return found


@contextmanager
def local_workers(study: StudyDirectory, count: int, *, wait: bool) -> Generator[Workers]:
    """Start `count` workers here, cores and GPUs shared out among them; they have stopped after the block."""
    folder = study.path / _LOGS
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "swamp", "study", "--worker", str(study.path), *(["--wait"] if wait else [])]
    workers = Workers([], [])
    try:
        for index in range(count):
            log = folder / f"{os.getpid()}-{index}.log"
            with log.open("wb") as file:
                environment = os.environ | shares(study, index, count)
                workers.processes.append(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment)
                )
            workers.logs.append(log)
        yield workers
    finally:
        workers.stop()
        for process, log in zip(workers.processes, workers.logs, strict=True):
            if process.wait() in _GOOD:
                log.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # unless a log of a fault, or another machine's worker, is in it


def shares(study: StudyDirectory, index: int, count: int) -> dict[str, str]:
    """Environment that gives one of `count` workers its part of this machine: of its cores, and one of its GPUs."""
    share: dict[str, str] = {}
    if "OMP_NUM_THREADS" not in os.environ:
        share["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // count))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [str(one) for one in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    # A run that names its device counts it among all of them.
    if len(devices) > 1 and all(config.device == "auto" for config in study.runs.values()):
        share["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
    return share


def work_here(path: Path, *, wait: bool, stop: Event) -> None:
    """Be one worker of the study in `path`."""
    with warnings_to(Err):
        work(StudyDirectory.open(path), Quiet(), stop, wait=wait)


def stop_with_parent(stop: Event) -> None:
    """Set `stop` when standard input ends, that is when the process that started this one asks or is gone."""

    def listen() -> None:
        while os.read(0, 64):
            pass
        stop.set()

    threading.Thread(target=listen, daemon=True).start()


@dataclass(frozen=True)
class Job:
    """What a cluster runs: one worker. The scheduler's file of it holds these two values and the class's name."""

    path: Path
    wait: bool

    def __call__(self) -> None:
        """Work until nothing is left."""
        # Signals stay submitit's: it asks for the checkpoint by one. A job that is killed loses half a minute at most.
        work_here(self.path, wait=self.wait, stop=Event())

    def checkpoint(self) -> Any:
        """Called before the job's time is up: the job is queued again, and goes on with what lies on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(study: StudyDirectory, cluster: str, count: int, options: Sequence[str], *, wait: bool) -> list[str]:
    """Submit `count` workers as jobs through submitit; returns the ids of the jobs.

    cluster: slurm, or local for jobs of this machine that outlive the terminal. options: KEY=VALUE, of submitit's
    executor. Raises SwampError where submitit or sbatch is missing, or an option is not one.
    """
    try:
        import submitit
    except ImportError as error:
        raise SwampError("--submit needs submitit. Install it with: pip install 'swamp[slurm]'") from error
    if cluster == "slurm" and not shutil.which("sbatch"):
        raise SwampError(
            "--submit slurm needs sbatch, and there is none here. Run it where jobs are submitted from, or leave "
            "--submit out and start the same command on every machine."
        )
    given = dict(_option(option) for option in options)
    # submitit's own default is five minutes.
    chosen = {"timeout_min": 24 * 60, "name": f"swamp-{study.path.name}", **given}
    executor = submitit.AutoExecutor(folder=study.path.absolute() / _LOGS / "%j", cluster=cluster)
    try:
        executor.update_parameters(**chosen)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise SwampError(f"--job does not fit submitit's executor: {error}") from error
    with executor.batch():
        jobs = [executor.submit(Job(study.path.absolute(), wait)) for _ in range(count)]
    return [str(job.job_id) for job in jobs]


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SwampError(f"--job takes KEY=VALUE, got {text!r}; e.g. --job slurm_partition=gpu gpus_per_node=1.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
