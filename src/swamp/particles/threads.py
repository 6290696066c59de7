"""Particles beside each other, a thread each: for networks whose kernels are larger than the interpreter's work."""

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Lock

import torch
from torch import nn

from swamp.errors import Diverged
from swamp.particles.backend import Progress, Silent
from swamp.particles.particle import Particle
from swamp.particles.sequential import Job, unbroken
from swamp.particles.ticket import Ticket
from swamp.sparsity import Mask
from swamp.training import (
    BatchList,
    OptimizerFactory,
    Seed,
    Snapshot,
    Task,
    TensorData,
    TokenData,
    Training,
    draws_globally,
)


class Threads:
    """One thread a particle, torch's own threads shared out among them: for convolutions and transformers on CPU.

    Where that cannot be (see `obstacle`), particles are trained one after the other, with a warning that says why.
    """

    def __init__(self, model: nn.Module, task: Task, optimizer: OptimizerFactory | None = None) -> None:
        self.model = copy.deepcopy(model)
        self.task = task.to(next(model.parameters()).device)
        self.optimizer = optimizer

    def train(
        self,
        ticket: Ticket,
        mask: Mask,
        training: Training,
        seeds: Sequence[tuple[int, Seed]],
        *,
        first: int = 0,
        last: int | None = None,
        progress: Progress | None = None,
    ) -> list[Particle]:
        """See Backend.train. Bit-equal to Sequential where each thread has as many of torch's threads."""
        workers = min(len(seeds), cores())
        why_not = obstacle(self.model, self.task, training) if workers > 1 else None
        if why_not:
            warnings.warn(f"particles are trained one after the other, not in threads: {why_not}", stacklevel=2)
        job = Job(self.model, self.task, self.optimizer, ticket, mask, training, first, last, progress or Silent())
        if workers < 2 or why_not:
            return job.particles(seeds)
        return _side_by_side(job, seeds, workers)


def obstacle(model: nn.Module, task: Task, training: Training) -> str | None:
    """Why trainings of this model cannot run in threads beside each other; None where they can."""
    if not isinstance(task.train, TensorData | TokenData | BatchList):
        return "examples are fetched one by one, with global random numbers that one training at a time may use."
    if draws_globally(model, task, training.batch_size):
        return "the model draws random numbers by other means than dropout, from torch's one global generator."
    return None


def cores() -> int:
    """Processor cores that this process may use; those of a machine are shared out among the ranks on it."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _side_by_side(job: Job, seeds: Sequence[tuple[int, Seed]], workers: int) -> list[Particle]:
    threads = torch.get_num_threads()
    # Never more than the user asked for: another number rounds differently.
    each = min(threads, max(1, cores() // workers))
    progress = _Together(job.progress)
    beside = replace(job, progress=progress, alone=False, beside=workers)
    with ThreadPoolExecutor(workers, "particle", initializer=torch.set_num_threads, initargs=(each,)) as pool:
        futures = [pool.submit(beside.particle, index, seed) for index, seed in seeds]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            progress.cancelled = True
            pool.shutdown(cancel_futures=True)
            # Their number of threads is in part the whole process's.
            torch.set_num_threads(threads)
    return _results(futures)


def _results(futures: Sequence[Future[Particle | None]]) -> list[Particle]:
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    # Those that were only told to stop say nothing of what happened.
    for error in sorted(errors, key=lambda error: isinstance(error, _Cancelled)):
        raise error
    return unbroken(future.result() for future in futures)


class _Cancelled(Exception):  # noqa: N818
    """Raised in a thread when another one failed or was stopped."""


class _Together:
    """Progress told by many threads, one at a time; stops them all when one stops."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.lock = Lock()
        self.cancelled = False

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on. Raises what it raises, and _Cancelled where another thread failed."""
        with self.lock:
            # Asked once more though cancelled: a run that was stopped saves each of its particles.
            self.progress.stepped(index, step, total, snapshot)
        if self.cancelled:
            raise _Cancelled

    def unfinished(self, index: int) -> Snapshot | None:
        """Pass it on."""
        with self.lock:
            return self.progress.unfinished(index)

    def ready(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on."""
        with self.lock:
            self.progress.ready(index, snapshot)

    def finished(self, particle: Particle) -> None:
        """Pass it on."""
        with self.lock:
            self.progress.finished(particle)

    def broke(self, index: int, error: Diverged) -> None:
        """Pass it on."""
        with self.lock:
            self.progress.broke(index, error)
