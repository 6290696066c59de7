"""A run, read back to be looked into."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from swamp.algorithms import Cycle, particle_index
from swamp.backends import Particle, Ticket
from swamp.errors import CorruptFile, SwampError
from swamp.runs import (
    RunConfig,
    RunDirectory,
    open_run,
    prepare,
    read_cycle,
    read_particle,
    read_record,
    read_ticket,
)
from swamp.training import Task


def begun(path: Path | str) -> tuple[RunDirectory, RunConfig]:
    """A run by its directory. Raises SwampError where there is none, or no finished cycle yet."""
    directory, config = open_run(path)
    told = directory.metrics.read_bytes().count(b"\n") if directory.metrics.is_file() else 0
    if directory.finished < max(directory.last + 1, told):
        raise CorruptFile(f"{directory.record(directory.finished)} is missing. To make it again: swamp resume {path}")
    if not directory.finished:
        raise SwampError(f"{path} has no finished cycle yet. Wait for the first one, or go on with the run.")
    return directory, config


@dataclass(frozen=True, eq=False)
class Subject:
    """A run directory, finished or still being written: what lies in it so far, and the task it was trained on."""

    directory: RunDirectory
    config: RunConfig
    model: nn.Module
    """With its initial weights; a scratch model for whoever looks at others."""
    task: Task

    @classmethod
    def open(cls, path: Path | str) -> "Subject":
        """Read a run. Raises SwampError where `path` holds none, or none with a finished cycle."""
        directory, config = begun(path)
        problem, model = prepare(config)
        return cls(directory, config, model, problem.task.to(next(model.parameters()).device))

    @cached_property
    def cycles(self) -> int:
        """Finished cycles at the time of the first look: later ones are left for the next."""
        return self.directory.finished

    def cycle(self, index: int) -> Cycle:
        """A finished cycle: its record, mask and weights."""
        return read_cycle(self.directory, index)

    def numbers(self, index: int) -> list[int]:
        """The numbers of a cycle's particles: those that broke and were left out are not among them."""
        records = read_record(self.directory, index)["particles"]
        return [particle_index(record, place) for place, record in enumerate(records)]

    def particles(self, index: int) -> list[Particle]:
        """The particles of a cycle, all of them or none: a run with --keep means has deleted its own."""
        return [self.particle(index, number) for number in self._particles(index)]

    def particle(self, index: int, number: int) -> Particle:
        """One of them."""
        return read_particle(self.directory, index, number)

    def require_particles(self, index: int, least: int = 2) -> list[Particle]:
        """The particles of a cycle. Raises SwampError, saying what to do, where fewer than `least` were kept."""
        found = self.particles(index)
        if len(found) < least:
            raise SwampError(
                f"cycle {index} of {self.directory.path} has {len(found)} particles on disk, and {least} are needed. "
                "Particles stay where the run is made with --keep particles (the default) and --particles 2 or more; "
                "what needs only the mean of each cycle can still be computed."
            )
        return found

    def with_particles(self, least: int = 2) -> Iterator[int]:
        """The cycles that have at least so many particles on disk."""
        return (index for index in range(self.cycles) if len(self._particles(index)) >= least)

    def _particles(self, index: int) -> list[int]:
        """The numbers of those on disk; none where one of them is not."""
        numbers = self.numbers(index)
        return numbers if all(self.directory.particle(index, number).exists() for number in numbers) else []

    @cached_property
    def ticket(self) -> Ticket | None:
        """The ticket; None where the method has none."""
        return read_ticket(self.directory) if self.directory.ticket.exists() else None

    @property
    def device(self) -> torch.device:
        """Where the scratch model lies."""
        return next(self.model.parameters()).device
