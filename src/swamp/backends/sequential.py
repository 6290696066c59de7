"""The reference backend: particles are trained sequentially."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from swamp.backends.base import TrainRequest
from swamp.backends.particle import Particle
from swamp.backends.ticket import Ticket
from swamp.errors import Diverged, SwampError
from swamp.masks import Mask
from swamp.model_copy import copied_model
from swamp.training import Seed, Task
from swamp.training.batchnorm import reset_statistics
from swamp.training.loop import Fit, fit
from swamp.training.module_extra_state import load_state
from swamp.training.nan_checks import require_finite_weights
from swamp.training.optimizers import OptimizerFactory
from swamp.training.shard import Shard
from swamp.training.snapshot import Snapshot


class Sequential:
    """Trains particles one at a time with all threads: the reference that every other backend must equal.

    Args:
        model: Architecture of the particles; it is copied, so that the caller's weights stay as they are.
        task: Data, loss and forward pass.
        optimizer: Factory from parameters to a torch optimizer (default: the one that `training` names).
        shard: Shard of each batch that this process computes, where several processes train each particle.
    """

    def __init__(
        self, model: nn.Module, task: Task, optimizer: OptimizerFactory | None = None, *, shard: Shard | None = None
    ) -> None:
        self.model = copied_model(model)
        self.task = task.to(next(model.parameters()).device)
        self.optimizer, self.shard = optimizer, shard

    def train(self, request: TrainRequest) -> list[Particle]:
        """See Backend.train."""
        job = ParticleJob(self.model, self.task, self.optimizer, request, shard=self.shard)
        trained = [job.train(index, seed) for index, seed in request.seeds]
        return [particle for particle in trained if particle is not None]


@dataclass(frozen=True, eq=False)
class ParticleJob:
    """The training of single particles of a request."""

    model: nn.Module
    task: Task
    optimizer: OptimizerFactory | None
    request: TrainRequest
    exclusive: bool = True
    """Whether no other training runs in this process meanwhile: then it may seed the global generators."""
    concurrent: int = 1
    """Particles that share this process's time: the seconds of each are divided by it."""
    shard: Shard | None = None

    def train(
        self, index: int, seed: Seed, train_in_place: Callable[[nn.Module, int, Seed], Fit] | None = None
    ) -> Particle | None:
        """Train one particle and report it; None where it diverged and `progress` lets the others go on.

        train_in_place: trains the given model (default: the library's own loop).
        """
        began, request, progress = time.perf_counter(), self.request, self.request.progress
        try:
            model = self.start_model()
            if train_in_place is not None:
                fitted = train_in_place(model, index, seed)
            else:
                fitted = fit(
                    model,
                    self.task,
                    request.training,
                    seed,
                    mask=request.mask,
                    first=request.first,
                    last=request.last,
                    optimizer=self.optimizer,
                    resume=self.start_snapshot(index),
                    on_step=lambda step, total, snapshot: progress.on_step(index, step, total, snapshot),
                    exclusive=self.exclusive,
                    shard=self.shard,
                )
            return self.finish(index, fitted, (time.perf_counter() - began) / self.concurrent)
        except Diverged as error:
            self.report_divergence(index, error)
            return None

    def start_snapshot(self, index: int) -> Snapshot | None:
        """Where the training of particle `index` was interrupted, else the end of the trunk; None: at the ticket."""
        trunk = self.request.trunk
        return self.request.progress.load_snapshot(index) or (trunk.snapshot if trunk else None)

    def start_model(self) -> nn.Module:
        """A copy of the model at `mask * ticket.weights`."""
        # A copy each: a state dict leaves out buffers that are not persistent, which particles must not share.
        model = copied_model(self.model)
        rewind(model, self.request.ticket, self.request.mask)
        if self.request.training.reset_batchnorm:
            reset_statistics(model)
        return model

    def finish(self, index: int, fitted: Fit, seconds: float) -> Particle:
        """Check the trained weights and hand the particle to `progress`. Raises Diverged if they are not finite."""
        # The average and running statistics too: one bad batch spoils these though the last weights are finite.
        request = self.request
        step = request.first + fitted.steps
        require_finite_weights(fitted.weights, step, request.training, beside=request.ticket.weights)
        request.mask.require_zeros(fitted.weights)
        particle = Particle(
            fitted.weights,
            index,
            request.ticket.id,
            request.mask.digest,
            fitted.averaged,
            fitted.steps,
            fitted.losses,
            seconds,
            fitted.state,
        )
        request.progress.on_finished(particle)
        return particle

    def report_divergence(self, index: int, error: Diverged) -> None:
        """Report a divergence to `progress`: it raises to stop the run, or returns so that the others train."""
        named = Diverged(f"particle {index}: {error}", error.steps)
        named.__cause__ = error
        self.request.progress.on_diverged(index, named)


def rewind(model: nn.Module, ticket: Ticket, mask: Mask) -> None:
    """Set `model` to `mask * ticket.weights`: remaining weights bit-equal to the ticket, all others exactly zero.

    Raises:
        SwampError: The ticket belongs to another architecture.
    """
    try:
        load_state(model, ticket.weights)
    except RuntimeError as error:
        raise SwampError(
            f"the ticket does not fit this {type(model).__name__}: {error}. Use its own ticket."
        ) from error
    mask.apply_(model)
