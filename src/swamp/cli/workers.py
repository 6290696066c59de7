"""Workers of a study: processes on this machine, or jobs of a cluster."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import Any

import torch
import tyro

from swamp.cli.session import Err, warnings_to
from swamp.errors import SwampError, warn
from swamp.runs.run_progress import Reporter
from swamp.runs.study_queue import StudyDirectory, work
from swamp.tracking.tracking_reporter import tracked

_LOGS = ".workers"
_GOOD = (0, 130, 143)
"""Exit codes of a worker that finished, or was stopped by a signal."""


@dataclass(frozen=True)
class WorkerArgs:
    """One worker, started by swamp study or swamp tune."""

    folder: tyro.conf.Positional[Path]
    """Folder of an existing study or tuning."""
    wait: bool = False
    """Wait for runs that other workers have claimed."""


@dataclass
class Workers:
    """Worker processes of one study or tuning."""

    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]

    def ended(self) -> bool:
        """Whether all processes have ended."""
        return all(process.poll() is not None for process in self.processes)

    def stop(self) -> None:
        """Close their standard input: they save and stop, as they also do if this process is killed."""
        for process in self.processes:
            if process.stdin:
                process.stdin.close()

    def faults(self) -> list[str]:
        """A message for each worker that failed, with the end of its log."""
        found: list[str] = []
        for process, log in zip(self.processes, self.logs, strict=True):
            code = process.wait()
            if code < 0:
                found.append(f"worker {process.pid} was killed by signal {-code}.")
            elif code not in _GOOD:
                tail = log.read_text(errors="replace").strip()[-2000:]
                found.append(f"worker {process.pid} ended with exit code {code}: {tail or 'its log is empty'}")
        return found


@contextmanager
def local_workers(
    command: str,
    path: Path,
    count: int,
    devices: Collection[str],
    *,
    wait: bool,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Generator[Workers]:
    """Start `count` workers that share the cores and GPUs of this machine; they are stopped at the end of the block.

    Args:
        command: Whose workers: each runs `swamp COMMAND --worker PATH`.
        path: Folder of a study or tuning.
        count: Number of processes.
        devices: The devices that the runs name.
        wait: Workers wait for runs of other workers.
        environment: Additional environment variables.
    """
    folder = path / _LOGS
    if count:  # without workers, the progress of a study is shown that others may not write
        folder.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", "swamp", command, "--worker", str(path), *(["--wait"] if wait else [])]
    workers = Workers([], [])
    try:
        for index in range(count):
            log = folder / f"{os.getpid()}-{index}.log"
            with log.open("wb") as file:
                own = {**os.environ, **environment, **shares(devices, index, count)}
                workers.processes.append(
                    subprocess.Popen(line, stdin=subprocess.PIPE, stdout=file, stderr=file, env=own)
                )
            workers.logs.append(log)
        yield workers
    finally:
        workers.stop()
        for process, log in zip(workers.processes, workers.logs, strict=True):
            if process.wait() in _GOOD:
                log.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # not empty if a worker failed, or workers of another machine run


def tell_faults(faults: Sequence[str], *, waiting: bool) -> None:
    """Report failed workers: as an error if runs are still waiting, else as warnings: other workers did their runs."""
    if faults and waiting:
        error = SwampError("\n".join([*faults, "Finished work is saved. Run the same command to continue."]))
        error.exit_code = 1
        raise error
    for fault in faults:
        warn(fault)


def shares(devices: Collection[str], index: int, count: int) -> dict[str, str]:
    """Environment variables of worker `index` of `count`: a part of the cores, and one GPU.

    devices: those that the runs name.
    """
    share: dict[str, str] = {}
    if "OMP_NUM_THREADS" not in os.environ:
        share["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // count))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(one) for one in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    # Not if a run names its device: cuda:1 is the second of all GPUs.
    if len(gpus) > 1 and all(device == "auto" for device in devices):
        share["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    return share


def work_here(path: Path, *, wait: bool, stop: Event) -> None:
    """Work on the study in `path` in this process."""
    with warnings_to(Err):
        work(StudyDirectory.open(path), partial(tracked, Reporter()), stop, wait=wait)


def stop_with_parent(stop: Event) -> None:
    """Set `stop` when standard input is closed: the parent process asks for it, or has ended."""

    def listen() -> None:
        while os.read(0, 64):
            pass
        stop.set()

    threading.Thread(target=listen, daemon=True).start()


@dataclass(frozen=True)
class StudyJob:
    """The job of a cluster: one worker. The file of the scheduler contains the two fields and the class name."""

    path: Path
    wait: bool

    def __call__(self) -> None:
        """Work until no run is left."""
        # No signal handlers here: submitit needs its own to call checkpoint(). A killed job loses at most 30 s.
        work_here(self.path, wait=self.wait, stop=Event())

    def checkpoint(self) -> Any:
        """Called before the time limit of the job: submit it again, to continue from the files on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(study: StudyDirectory, cluster: str, count: int, options: Sequence[str], *, wait: bool) -> list[str]:
    """Submit `count` workers as jobs through submitit; returns the ids of the jobs.

    cluster: slurm, or local for jobs on this machine that continue without the terminal. options: KEY=VALUE, options of
    the executor of submitit. Raises SwampError if submitit or sbatch is missing, or an option is invalid.
    """
    try:
        import submitit
    except ImportError as error:
        raise SwampError("--submit needs submitit. Install it with: pip install 'swamp[slurm]'") from error
    if cluster == "slurm" and not shutil.which("sbatch"):
        raise SwampError(
            "--submit slurm needs sbatch, which is not installed here. Run it where jobs can be submitted, or start "
            "the same command without --submit on every machine."
        )
    given = dict(_option(option) for option in options)
    # The default of submitit is five minutes.
    chosen = {"timeout_min": 24 * 60, "name": f"swamp-{study.path.name}", **given}
    executor = submitit.AutoExecutor(folder=study.path.absolute() / _LOGS / "%j", cluster=cluster)
    try:
        executor.update_parameters(**chosen)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise SwampError(f"invalid --job for the executor of submitit: {error}") from error
    with executor.batch():
        jobs = [executor.submit(StudyJob(study.path.absolute(), wait)) for _ in range(count)]
    return [str(job.job_id) for job in jobs]


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SwampError(f"--job takes KEY=VALUE, got {text!r}; e.g. --job slurm_partition=gpu gpus_per_node=1.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
