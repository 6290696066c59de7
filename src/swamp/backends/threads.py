"""Particles trained concurrently, one thread each: for networks whose kernels take longer than the interpreter."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Lock

import torch
from torch import nn

from swamp.backends.base import ForwardingProgress, Progress, TrainRequest
from swamp.backends.particle import Particle
from swamp.backends.rank_variables import local_size
from swamp.backends.sequential import ParticleJob, Sequential
from swamp.errors import Diverged, warn
from swamp.model_copy import copied_model
from swamp.training import Task, TensorData, TokenData, Training
from swamp.training.data import BatchList
from swamp.training.loop import uses_global_rng
from swamp.training.optimizers import OptimizerFactory
from swamp.training.rng import Seed, isolated
from swamp.training.snapshot import Snapshot

_BINDING = ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")

GLOBAL_RNG = (
    "the model, the loss, the optimizer or the augmentation draws random numbers by other means than dropout, from the "
    "global generators, which only one training at a time may use."
)


class Threads:
    """Trains one particle a thread and divides torch's threads among them: for convolutions and transformers on CPU.

    Where this is not supported (see `unsupported_reason`), particles are trained sequentially, with a warning that
    says why. Bit-equal to Sequential if each thread has as many of torch's threads.
    """

    def __init__(self, model: nn.Module, task: Task, optimizer: OptimizerFactory | None = None) -> None:
        self.model = copied_model(model)
        self.task = task.to(next(model.parameters()).device)
        self.optimizer = optimizer

    def train(self, request: TrainRequest) -> list[Particle]:
        """See Backend.train."""
        workers = min(request.places, cores())
        parts = self.model, self.task, request.training, self.optimizer
        reason = unsupported_reason(*parts) if request.places > 1 else None
        if reason:
            warn(f"particles are trained sequentially, not in threads: {reason}")
        if workers < 2 or reason:
            return Sequential(self.model, self.task, self.optimizer).train(request)
        return _train_concurrently(ParticleJob(self.model, self.task, self.optimizer, request), workers)


def unsupported_reason(
    model: nn.Module, task: Task, training: Training, optimizer: OptimizerFactory | None
) -> str | None:
    """Why particles of this model cannot be trained in threads; None where they can, if there are several cores."""
    if cores() < 2:
        return _binding_reason()
    if not isinstance(task.train, TensorData | TokenData | BatchList):
        return "examples are fetched one by one, with global random numbers, which only one training at a time may use."
    if uses_global_rng(model, task, training, optimizer):
        return GLOBAL_RNG
    return None


def cores() -> int:
    """Processor cores that this process may use; ranks on one machine share its cores equally."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // local_size())


def _binding_reason() -> str | None:
    """The setting by which OpenMP binds this process, and all its threads, to one core; None if there is none."""
    binding = [name for name in _BINDING if os.environ.get(name, "false").lower() != "false"]
    if not binding or torch.get_num_threads() < 2:
        return None
    return f"{binding[0]} binds this process to one core, and its threads with it; unset it to train on all."


def _train_concurrently(job: ParticleJob, workers: int) -> list[Particle]:
    threads, seeds = torch.get_num_threads(), job.request.seeds
    # At most the number that the user set: another number rounds differently.
    each = min(threads, max(1, cores() // workers))
    locked = _LockedProgress(job.request.progress)
    own = replace(
        job, request=replace(job.request, progress=locked), exclusive=False, concurrent=min(workers, len(seeds))
    )
    pool = ThreadPoolExecutor(workers, "particle", initializer=torch.set_num_threads, initargs=(each,))
    # What the threads try in `isolated` blocks of their own, at the same time, would else end in another state.
    with isolated(Seed(0).at("threads")), pool:
        futures = [pool.submit(own.train, index, seed) for index, seed in seeds]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            locked.cancelled = True
            pool.shutdown(cancel_futures=True)
            # torch's thread count is partly a setting of the whole process.
            torch.set_num_threads(threads)
    return [particle for particle in _results(futures) if particle is not None]


def _results(futures: Sequence[Future[Particle | None]]) -> list[Particle | None]:
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    # A real error first: _Cancelled only tells that another thread failed.
    for error in sorted(errors, key=lambda error: isinstance(error, _Cancelled)):
        raise error
    return [future.result() for future in futures]


class _Cancelled(Exception):  # noqa: N818
    """Raised in a thread after another thread failed or was stopped."""


class _LockedProgress(ForwardingProgress):
    """Reports of several threads, one at a time; after `cancelled` is set every thread stops at its next step."""

    def __init__(self, inner: Progress) -> None:
        super().__init__(inner)
        self.lock = Lock()
        self.cancelled = False

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on to `inner`. Raises _Cancelled where another thread failed."""
        with self.lock:
            # Also after cancellation: a run that was stopped saves each of its particles.
            self.inner.on_step(index, step, total, snapshot)
        if self.cancelled:
            raise _Cancelled

    def load_snapshot(self, index: int) -> Snapshot | None:
        """Pass it on to `inner`."""
        with self.lock:
            return self.inner.load_snapshot(index)

    def on_finished(self, particle: Particle) -> None:
        """Pass it on to `inner`."""
        with self.lock:
            self.inner.on_finished(particle)

    def on_diverged(self, index: int, error: Diverged) -> None:
        """Pass it on to `inner`."""
        with self.lock:
            self.inner.on_diverged(index, error)
