"""Read a run directory: its configuration, cycles, particles, ticket and task."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from swamp.algorithms import Cycle
from swamp.backends import Particle, Ticket
from swamp.batches import Batch, rows_of
from swamp.datasets.problem import Problem
from swamp.errors import SwampError
from swamp.runs import read_cycle, read_record, read_ticket
from swamp.runs.config import RunConfig
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import prepare
from swamp.runs.read import open_with_cycles, read_particle
from swamp.runs.reference_origin import load_initial_weights, with_references
from swamp.training import Task
from swamp.training.data import Data, sampled


@dataclass(frozen=True, eq=False)
class RunData:
    """What a run directory holds so far, and the task of the run; the run may still be in progress."""

    directory: RunDirectory
    config: RunConfig
    model: nn.Module
    """The network with its initial weights. Analyses may load other weights into it."""
    task: Task
    """The task of `problem`, on the device of the model."""
    problem: Problem

    @classmethod
    def open(cls, path: Path | str, model: str = "", task: str = "") -> "RunData":
        """Read the run in the directory `path`, and build its task and model.

        Args:
            path: A run directory.
            model: Reference to the function that makes the model, in place of what config.json names.
            task: Reference to the function that makes the task, likewise.

        Raises:
            SwampError: `path` holds no run, or no finished cycle; or the model or task of a run that was started from
                Python is not given, or is another one.
        """
        directory, config = open_with_cycles(path)
        config = with_references(directory, config, model, task)
        problem, network = prepare(config)
        load_initial_weights(directory, network, config.model)
        device = next(network.parameters()).device
        return cls(directory, config, network, problem.task.to(device), problem)

    @cached_property
    def cycles(self) -> int:
        """Number of finished cycles when first read. Cycles that finish later are ignored."""
        return self.directory.finished

    def cycle(self, index: int) -> Cycle:
        """The record, mask and weights of a finished cycle."""
        return read_cycle(self.directory, index)

    def particle_numbers(self, index: int) -> list[int]:
        """Numbers of a cycle's particles, without the particles that diverged and were dropped."""
        records = read_record(self.directory, index)["particles"]
        return [record["index"] for record in records]

    def particles(self, index: int) -> list[Particle]:
        """All particles of a cycle; an empty list if any is not on disk (a run with --keep-checkpoints means)."""
        return [self.particle(index, number) for number in self._stored_numbers(index)]

    def particle(self, index: int, number: int) -> Particle:
        """Particle `number` of cycle `index`."""
        return read_particle(self.directory, index, number)

    def require_particles(self, index: int, minimum: int = 2) -> list[Particle]:
        """All particles of a cycle.

        Raises:
            SwampError: fewer than `minimum` particles are on disk.
        """
        found = self.particles(index)
        if len(found) < minimum:
            raise SwampError(
                f"cycle {index} of {self.directory.path} has {len(found)} particles on disk; at least {minimum} are "
                "needed. Run with --keep-checkpoints particles (the default) and --particles 2 or more. "
                "Analyses of the mean of each cycle work without particles."
            )
        return found

    def cycles_with_particles(self) -> list[int]:
        """Indices of the cycles that have two particles or more on disk."""
        return [index for index in range(self.cycles) if len(self._stored_numbers(index)) > 1]

    def _stored_numbers(self, index: int) -> list[int]:
        """Numbers of the particles on disk; empty if any of them is missing."""
        numbers = self.particle_numbers(index)
        return numbers if all(self.directory.particle(index, number).exists() for number in numbers) else []

    @cached_property
    def ticket(self) -> Ticket | None:
        """The ticket; None if the method has none."""
        return read_ticket(self.directory) if self.directory.ticket.exists() else None

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def held_out_split(self) -> str:
        """The split that `task.held_out` is: "validation", or "training" for a task without validation data."""
        return "training" if self.task.validation is None else "validation"


def some_examples(data: Data, examples: int, batch_size: int) -> list[Batch]:
    """At most `examples` of `data`, a fixed random subset, in batches; the last batch is cut to fit."""
    batches: list[Batch] = []
    remaining = examples
    for inputs, targets in sampled(data, examples).in_order(min(batch_size, examples)):
        batches.append((rows_of(inputs, slice(remaining)), targets[:remaining]))
        remaining -= len(batches[-1][1])
        if not remaining:
            break
    return batches
