"""The reference backend: particles one after the other."""

import copy
import time
from collections.abc import Callable, Sequence

from torch import nn

from swamp.errors import Diverged, SwampError
from swamp.particles.backend import Progress, Silent
from swamp.particles.particle import Particle
from swamp.particles.ticket import Ticket
from swamp.sparsity import Mask
from swamp.training import OptimizerFactory, Seed, Snapshot, Task, Training, fit, reset_statistics


class Sequential:
    """Trains copies of `model` on `task`, one after the other; `model` itself is left alone.

    optimizer: factory from parameters to any torch optimizer, in place of the one `training` names.
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
        """See Backend.train."""
        told = progress or Silent()
        particles: list[Particle] = []
        for index, seed in seeds:
            particles.append(self._one(ticket, mask, training, index, seed, first, last, told))
            told.finished(particles[-1])
        return particles

    def _one(
        self,
        ticket: Ticket,
        mask: Mask,
        training: Training,
        index: int,
        seed: Seed,
        first: int,
        last: int | None,
        progress: Progress,
    ) -> Particle:
        began = time.perf_counter()
        # A copy each: what a state dict leaves out (a buffer that is not persistent) stays with its own particle.
        model = copy.deepcopy(self.model)
        rewind(model, ticket, mask)
        if training.fresh_batchnorm:
            reset_statistics(model)

        def watch(step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
            progress.stepped(index, step, total, snapshot)

        try:
            trained = fit(
                model,
                self.task,
                training,
                seed,
                mask=mask,
                first=first,
                last=last,
                optimizer=self.optimizer,
                resume=progress.unfinished(index),
                watch=watch,
            )
        except Diverged as error:
            raise Diverged(f"particle {index}: {error}") from error
        mask.require_zeros(trained.weights)
        seconds = time.perf_counter() - began
        return Particle(
            trained.weights, index, ticket.id, mask.digest, trained.averaged, trained.steps, trained.losses, seconds
        )


def rewind(model: nn.Module, ticket: Ticket, mask: Mask) -> None:
    """Set `model` to mask * ticket.weights: survivors bit-equal to the ticket, the rest exactly zero.

    Raises SwampError for the ticket of another model.
    """
    try:
        model.load_state_dict(dict(ticket.weights))
    except RuntimeError as error:
        raise SwampError(
            f"the ticket does not fit this {type(model).__name__}: {error}. Use its own ticket."
        ) from error
    mask.apply_(model)
