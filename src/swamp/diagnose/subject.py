"""A run, read back to be looked into."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from swamp.errors import SwampError
from swamp.files import load_tensors
from swamp.methods import Cycle, particle_index
from swamp.particles import Particle, Ticket
from swamp.runs import RunConfig, RunDirectory, prepare
from swamp.runs.directory import read_json
from swamp.sparsity import Mask
from swamp.training import Task


def begun(path: Path | str) -> tuple[RunDirectory, RunConfig]:
    """A run by its directory. Raises SwampError where there is none, or no finished cycle yet."""
    directory = RunDirectory(Path(path))
    if not directory.config.exists():
        raise SwampError(f"{path} holds no run: there is no {directory.config.name} in it. Give a run directory.")
    config = RunConfig.load(directory.config)
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
        folder = self.directory.cycle(index)
        weights, _ = load_tensors(folder / "mean.safetensors")
        return Cycle.from_json(read_json(self.directory.record(index)), Mask.load(folder / "mask.safetensors"), weights)

    def numbers(self, index: int) -> list[int]:
        """The numbers of a cycle's particles: those that broke and were left out are not among them."""
        records = read_json(self.directory.record(index))["particles"]
        return [particle_index(record, place) for place, record in enumerate(records)]

    def particles(self, index: int) -> list[Particle]:
        """The particles of a cycle, all of them or none: a run with --keep means has deleted its own."""
        return [Particle.load(path) for path in self._particles(index)]

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

    def _particles(self, index: int) -> list[Path]:
        paths = [self.directory.particle(index, number) for number in self.numbers(index)]
        return paths if all(path.exists() for path in paths) else []

    @cached_property
    def ticket(self) -> Ticket | None:
        """The ticket; None where the method has none."""
        return Ticket.load(self.directory.ticket) if self.directory.ticket.exists() else None

    @property
    def device(self) -> torch.device:
        """Where the scratch model lies."""
        return next(self.model.parameters()).device
