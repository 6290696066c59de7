"""Particles as one stack of tensors that one step updates: for small networks, and for GPUs."""

import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from swamp.backends.base import TrainRequest
from swamp.backends.particle import Particle
from swamp.backends.sequential import ParticleJob, Sequential
from swamp.backends.threads import GLOBAL_RNG
from swamp.backends.ticket import Ticket
from swamp.backends.vmapped_state import VmappedState
from swamp.backends.vmapped_step import VmappedStep
from swamp.batches import Batch, as_batch, tensors_of
from swamp.errors import Diverged, first_line, warn
from swamp.files import digest
from swamp.masks import Mask
from swamp.model_copy import copied_model
from swamp.training import Seed, Task, TokenData, Training
from swamp.training.average import copied
from swamp.training.data import BatchList, Data
from swamp.training.loop import train_loop, uses_global_rng
from swamp.training.module_extra_state import as_tensors, is_extra_state
from swamp.training.optimizers import OptimizerFactory, build_optimizer, has_modes
from swamp.training.snapshot import Snapshot
from swamp.training.stacked import stacked_batches
from swamp.training.streams import close_streams

_Member = tuple[int, Seed]
"""A particle's index and seed."""


class Vmapped:
    """Trains all particles as one stack of tensors with one compiled step: for small networks on CPU, and for GPUs.

    A forward pass that torch.vmap does not support is trained sequentially, one that cannot be compiled is trained
    uncompiled, and a stack that does not fit in memory is split; a warning says why.

    Args:
        model: Architecture of the particles; it is copied.
        task: Data, loss and forward pass.
        optimizer: Factory from parameters to a torch optimizer (default: the one that `training` names).
        compiled: Compile the step, which takes seconds once and makes small networks several times faster.
        multi_stream: Compute each particle by itself, on a GPU in its own stream, instead of as a slice of a stack.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: OptimizerFactory | None = None,
        *,
        compiled: bool = True,
        multi_stream: bool = False,
    ) -> None:
        self.model = copied_model(model)
        self.task = task.to(next(model.parameters()).device)
        self.optimizer = optimizer
        self.compiled, self.multi_stream = compiled, multi_stream
        self._compiled_sizes: set[int] = set()
        self._largest: int | None = None
        """Particles that fit in memory, once that is known."""
        self._steps: dict[Training, VmappedStep | str] = {}

    def train(self, request: TrainRequest) -> list[Particle]:
        """See Backend.train. Equal to Sequential up to rounding."""
        job = ParticleJob(self.model, self.task, self.optimizer, request)
        step = self.step(request.training)
        if isinstance(step, str):
            warn(f"particles are trained sequentially, not stacked: {step}")
            return Sequential(self.model, self.task, self.optimizer).train(request)
        # A single training may be that of a trunk: its index TRUNK is not a place in the stack.
        fixed = request.progress.places > 1
        members = {index if fixed else place: (index, seed) for place, (index, seed) in enumerate(request.seeds)}
        size, start = request.places, 0
        found: dict[int, Particle | None] = {}
        while start < size:
            places = range(start, min(size, start + (self._largest or size)))
            try:
                found |= self._train_stack(job, step, {n: members[n] for n in places if n in members}, places)
                start = places.stop
            except RuntimeError as error:
                if not _out_of_memory(error) or len(places) == 1:
                    raise
                self._largest = (len(places) + 1) // 2
                warn(f"{len(places)} particles do not fit in memory at once; going on with {self._largest}.")
        return [particle for place in members if (particle := found[place]) is not None]

    def step(self, training: Training) -> VmappedStep | str:
        """The step of a stack of this model, or why there is none."""
        if training not in self._steps:
            if training.grad_accum_steps > 1:
                self._steps[training] = "gradients are accumulated to save memory, which a stack would not."
            elif not _equal_shapes(self.task.train):
                self._steps[training] = "the batches it was given differ in shape."
            elif uses_global_rng(self.model, self.task, training, self.optimizer):
                self._steps[training] = GLOBAL_RNG
            elif has_modes((self.optimizer or partial(build_optimizer, training=training))(self.model.parameters())):
                self._steps[training] = "the optimizer switches the weights between training and evaluation."
            else:
                self._steps[training] = self._tried_step(training)
        return self._steps[training]

    def _tried_step(self, training: Training) -> VmappedStep | str:
        step = VmappedStep(self.model, self.task, training, multi_stream=self.multi_stream)
        seeds = [(n, Seed(n)) for n in (0, 1)]
        request = TrainRequest(Ticket(self.model.state_dict(), 0), Mask({}), training, seeds, last=1)
        job = ParticleJob(self.model, self.task, None, request)
        fresh = _first_snapshot(job)
        before = _python_state(step)
        try:
            with warnings.catch_warnings():
                # Which operations torch cannot batch is nothing that a user could act on.
                warnings.filterwarnings("ignore", "There is a performance drop")
                batches = _first_batches(self.task, 8, 2, step.device, 3)
                if not step.find_unused(batches):
                    return "some of its weights have a gradient on some batches only, and a stack has one set of them."
                state = VmappedState(step, job, seeds, [fresh, fresh], compiled=False)
                state.step(0, 0.0, batches[0])
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            return f"its forward pass cannot be stacked ({first_line(error)})"
        if _python_state(step) != before:
            return "training changes extra state or attributes of its modules, of which a stack has one set for all."
        return step

    def _train_stack(
        self, job: ParticleJob, step: VmappedStep, members: Mapping[int, _Member], places: range
    ) -> dict[int, Particle | None]:
        """Train the particles `members` (by place) in a stack of all `places`; None for those that diverged."""
        if not members:
            return {}
        began, request = time.perf_counter(), job.request
        per_epoch = self.task.train.steps(request.training.batch_size)
        last = request.last_step(per_epoch)
        first = _first_snapshot(job)
        snapshots = {n: job.start_snapshot(index) or first for n, (index, _) in members.items()}
        # Unused copies take the places of particles that diverged, were finished before or are ahead of the others:
        # a smaller stack, or other places in it, would round differently, and would have to be compiled.
        stack = [members.get(n, next(iter(members.values()))) for n in places]
        unfinished = any(snapshot.step < last for snapshot in snapshots.values())
        if self.compiled and len(stack) not in self._compiled_sizes and unfinished:
            self._compiled_sizes.add(len(stack))
            request.progress.on_stage("compiling the step", once=True)
            self._try_compiling(job, step, stack, next(iter(snapshots.values())))
        found: dict[int, Particle | None] = dict.fromkeys(members)
        while snapshots:
            # An interruption leaves particles at different steps: those behind catch up first.
            behind = min(snapshots, key=lambda n: snapshots[n].step)
            group = [n for n in snapshots if snapshots[n].step == snapshots[behind].step]
            starts = [snapshots[n if n in group else behind] for n in places]
            stop = min([s.step for s in snapshots.values() if s.step > snapshots[behind].step], default=last)
            state = VmappedState(step, job, stack, starts, compiled=self.compiled)
            state.inactive |= {n - places.start for n in places if n not in group}
            train_loop(state, request.training, per_epoch, snapshots[behind].step, stop, last)
            if len(group) == len(snapshots):
                finished = _finished(job, state, (time.perf_counter() - began) / len(members))
                found |= {place + places.start: particle for place, particle in finished.items()}
                break
            for n in group:
                if n - places.start in state.inactive:
                    del snapshots[n]
                else:
                    snapshots[n] = state.snapshot(n - places.start)
        if last == request.training.epochs * per_epoch:
            close_streams(self.task.train, request.training.batch_size, (seed for _, seed in members.values()))
        return found

    def _try_compiling(self, job: ParticleJob, step: VmappedStep, stack: Sequence[_Member], start: Snapshot) -> None:
        """Compile the step on scratch particles; if that fails, warn and train uncompiled."""
        try:
            scratch = VmappedState(step, job, stack, [start] * len(stack), compiled=True)
            with warnings.catch_warnings():
                # The compiler's warnings about its own parts are nothing that a user could act on.
                warnings.simplefilter("ignore")
                size = job.request.training.batch_size
                (batch,) = _first_batches(self.task, size, len(stack), step.device, 1)
                scratch.step(0, 0.0, batch)
        except Exception as error:  # Whatever a compiler raises, training goes on without it.
            if _out_of_memory(error):
                raise
            self.compiled = False
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if "InvalidCxxCompiler" in reason:
                reason = "there is no C++ compiler. With one it is several times faster (on Debian: apt install g++)."
            warn(f"the stacked step runs uncompiled: {reason}")


class MultiStream(Vmapped):
    """One CUDA graph in which each particle has its own stream: for GPUs and networks that are slow as a stack."""

    def __init__(self, model: nn.Module, task: Task, optimizer: OptimizerFactory | None = None) -> None:
        super().__init__(model, task, optimizer, compiled=False, multi_stream=True)


def _first_snapshot(job: ParticleJob) -> Snapshot:
    """A particle before its first step."""
    return Snapshot(job.request.first, copied(job.start_model().state_dict()), {}, {}, 0, (), 0.0, 0)


def _finished(job: ParticleJob, state: VmappedState, seconds: float) -> dict[int, Particle | None]:
    """Place in the stack -> particle, None for those whose final weights are not finite."""
    active = state.active_places
    if len(active) > 1:
        for place in active:
            job.request.progress.on_last_step(state.members[place][0], partial(state.snapshot, place))
    found: dict[int, Particle | None] = {}
    for place in active:
        index = state.members[place][0]
        try:
            found[place] = job.finish(index, state.fitted(place), seconds)
        except Diverged as error:
            found[place] = None
            job.report_divergence(index, error)
    return found


def _python_state(step: VmappedStep) -> tuple[str, list[dict[str, Any]]]:
    """The extra state of the step's network, and numbers and text in attributes of its modules, such as a counter."""
    model = step.network.model
    state = as_tensors(model.state_dict())
    attributes = [
        {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        for module in model.modules()
    ]
    return digest({name: value for name, value in state.items() if is_extra_state(name)}), attributes


def _equal_shapes(data: Data) -> bool:
    """Whether all batches have one shape."""
    if isinstance(data, TokenData):
        return data.equal_lengths
    if isinstance(data, BatchList):
        parts = [tensors_of(as_batch(batch)) for batch in data.batches]
        return len({tuple((place, tensor.shape) for place, tensor in one.items()) for one in parts}) < 2
    return True


def _first_batches(task: Task, size: int, particles: int, device: torch.device, count: int) -> list[Batch]:
    """The first `count` batches of the training data for each particle, the same for all."""
    found = [*islice(stacked_batches(task.train, size, [Seed(0)] * particles, 0, 0, device), count)]
    close_streams(task.train, size, [Seed(0)])
    return found


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
