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

from swamp.backends.backend import Group, Progress, Silent
from swamp.backends.particle import Particle
from swamp.backends.sequential import Row, regrouped, rows_of
from swamp.backends.ticket import Ticket
from swamp.errors import Diverged
from swamp.masks import Mask
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
    kinds,
)

_BINDING = ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


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
        groups = [Group(ticket, mask, seeds, progress or Silent())]
        return self.train_groups(groups, training, first=first, last=last)[0]

    def train_groups(
        self, groups: Sequence[Group], training: Training, *, first: int = 0, last: int | None = None
    ) -> list[list[Particle]]:
        """See AtOnce."""
        rows = rows_of(self.model, self.task, self.optimizer, groups, training, first, last)
        size = sum(group.size for group in groups)
        workers = min(size, cores())
        why_not = obstacle(self.model, self.task, training) if size > 1 else None
        if why_not:
            warnings.warn(f"particles are trained one after the other, not in threads: {why_not}", stacklevel=2)
        if workers < 2 or why_not:
            return regrouped(groups, [row.job.particle(row.number, row.seed) for row in rows])
        return regrouped(groups, _side_by_side(rows, workers))


def obstacle(model: nn.Module, task: Task, training: Training) -> str | None:
    """Why trainings of this model cannot run in threads beside each other; None where they can, given the cores."""
    if cores() < 2:
        return _bound()
    if not all(isinstance(part, TensorData | TokenData | BatchList) for part in kinds(task.train)):
        return "examples are fetched one by one, with global random numbers that one training at a time may use."
    if draws_globally(model, task, training.batch_size):
        return "the model draws random numbers by other means than dropout, from torch's one global generator."
    return None


def cores() -> int:
    """Processor cores that this process may use; those of a machine are shared out among the ranks on it."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _bound() -> str | None:
    """Which setting leaves one core to a process that has more: OpenMP binds it, and its threads begin where it is."""
    binding = [name for name in _BINDING if os.environ.get(name, "false").lower() != "false"]
    if not binding or torch.get_num_threads() < 2:
        return None
    return f"{binding[0]} binds this process to one core, and its threads with it; unset it to train on all."


def _side_by_side(rows: Sequence[Row], workers: int) -> list[Particle | None]:
    threads = torch.get_num_threads()
    # Never more than the user asked for: another number rounds differently.
    each = min(threads, max(1, cores() // workers))
    turn = _Turn()
    beside = min(workers, len(rows))
    with ThreadPoolExecutor(workers, "particle", initializer=torch.set_num_threads, initargs=(each,)) as pool:
        futures: list[Future[Particle | None]] = []
        for row in rows:
            told = _InTurn(row.job.progress, turn)
            job = replace(row.job, progress=told, alone=False, beside=beside)
            futures.append(pool.submit(job.particle, row.number, row.seed))
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            turn.cancelled = True
            pool.shutdown(cancel_futures=True)
            # Their number of threads is in part the whole process's.
            torch.set_num_threads(threads)
    return _results(futures)


def _results(futures: Sequence[Future[Particle | None]]) -> list[Particle | None]:
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    # Those that were only told to stop say nothing of what happened.
    for error in sorted(errors, key=lambda error: isinstance(error, _Cancelled)):
        raise error
    return [future.result() for future in futures]


class _Cancelled(Exception):  # noqa: N818
    """Raised in a thread when another one failed or was stopped."""


class _Turn:
    """What the threads of one training at once have in common."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.cancelled = False


class _InTurn:
    """Progress told by many threads, one at a time; stops them all when one stops."""

    def __init__(self, progress: Progress, turn: _Turn) -> None:
        self.progress, self.turn = progress, turn
        self.lock = turn.lock

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on. Raises what it raises, and _Cancelled where another thread failed."""
        with self.lock:
            # Asked once more though cancelled: a run that was stopped saves each of its particles.
            self.progress.stepped(index, step, total, snapshot)
        if self.turn.cancelled:
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
