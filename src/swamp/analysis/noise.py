"""What makes particles differ? Particles of one ticket and mask that differ in one source of noise at a time."""

import copy
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from threading import Event
from typing import Any, cast

import torch
from torch import nn

from swamp.algorithms import backend_of
from swamp.analysis.analysis import Settings, Unit
from swamp.analysis.connectivity import segment
from swamp.analysis.hull import size_of
from swamp.analysis.points import Points
from swamp.analysis.subject import Subject
from swamp.backends import Backend, Choice, Particle, Ticket
from swamp.errors import SwampError
from swamp.runs import Reporter, RunDirectory, RunStore, executing
from swamp.training import BatchList, Seed, State, TensorData, Training, isolated, mean
from swamp.training.noise import draws

SOURCES = {
    "none": "nothing: two copies that must end in one point, the control of all others",
    "order": "the order of the batches",
    "augmentation": "how training examples are changed at random",
    "dropout": "what forward passes draw",
    "rate": "the learning rate, evenly spread around the run's own",
    "head": "the last layer, initialised anew for each particle",
    "all": "order, augmentation and dropout at once, as in a run",
}
"""What particles may differ in."""

_STREAMS = {"order": ("order",), "augmentation": ("augment", "loader"), "dropout": ("noise",)}
Record = dict[str, Any]


@dataclass(frozen=True)
class NoiseSettings(Settings):
    """What is the same for all sources."""

    particles: int = 4
    """Particles of each source (of none: two)."""
    spread: float = 0.1
    """Learning rates go from 1 - spread to 1 + spread times the run's own."""

    def __post_init__(self) -> None:
        if self.particles < 2:
            raise SwampError(f"particles must be 2 or more to differ, got {self.particles}.")
        if not 0 < self.spread < 1:
            raise SwampError(f"spread must lie between 0 and 1, got {self.spread:g}.")


@dataclass(frozen=True, eq=False)
class Sources:
    """Particles of a finished cycle, trained again from its ticket on its mask with one source of noise at a time."""

    subject: Subject
    cycle: int
    settings: NoiseSettings
    reporter: Reporter
    stop: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        plan, path = self.subject.config.plan, self.subject.directory.path
        if not plan.setting.rewinds:
            raise SwampError(
                f"{path} is a run of {plan.method}, whose particles do not start at a ticket. Give a run of imp, swamp "
                "or another method that rewinds."
            )
        if not 0 <= self.cycle < self.subject.cycles:
            raise SwampError(f"{path} has finished cycles 0 to {self.subject.cycles - 1}, and {self.cycle} was asked.")

    def units(self, names: Sequence[str]) -> Iterator[Unit]:
        """One for each source."""
        for name in names:
            yield Unit(f"noise/cycle-{self.cycle:02d}/{name}", partial(self.record, name))

    def record(self, name: str) -> Record:
        """What the particles of one source are like. A source that this run does not have says so under "skipped"."""
        mask = self.subject.cycle(self.cycle).mask
        record: Record = {"cycle": self.cycle, "sparsity": mask.sparsity, "source": name}
        if reason := self._missing(name):
            return {**record, "skipped": reason}
        particles = self.particles(name)
        states = [particle.weights for particle in particles]
        points = Points(self.subject.model, self.subject.task, examples=self.settings.examples)
        *corners, middle = points([*states, mean(states)])
        barriers = segment(points, states[0], states[1], self.settings.points).barriers
        count = len(states)
        found = {
            **record,
            "data": "training" if self.subject.task.validation is None else "validation",
            "particles": count,
            "identical": all(_equal(states[0], state) for state in states[1:]),
            **size_of(states, mask),
            "barrier": dict(barriers.__dict__),
            "corners": [{"loss": value.loss, "error": value.error} for value in corners],
            "mean": {"loss": middle.loss, "error": middle.error},
            "gain": sum(value.error for value in corners) / count - middle.error,
            "loss_gain": sum(value.loss for value in corners) / count - middle.loss,
        }
        # The numbers are kept; of the particles nobody asks for more.
        shutil.rmtree(self._directory(name).path, ignore_errors=True)
        return found

    def particles(self, name: str) -> list[Particle]:
        """The particles of one source, those that an interrupted session trained among them."""
        subject, count = self.subject, 2 if name == "none" else self.settings.particles
        if name == "all" and len(own := subject.particles(self.cycle)) >= count:
            return own[:count]
        directory, config = self._directory(name), subject.config
        with directory.locked(), executing(config):
            store = RunStore(directory, self.reporter, self.stop, True, config.snapshot_seconds)
            progress = store.progress(self.cycle, count)
            found = {i: kept for i in range(count) if (kept := store.particle(self.cycle, i)) is not None}
            mask = subject.cycle(self.cycle).mask
            for ticket, training, seeds in self._jobs(name, [i for i in range(count) if i not in found]):
                first = ticket.steps if training.after_rewind == "advance" else 0
                trained = self._backend.train(ticket, mask, training, seeds, first=first, progress=progress)
                found.update((particle.index, particle) for particle in trained)
        return [found[i] for i in range(count)]

    def _jobs(self, name: str, missing: Sequence[int]) -> Iterator[tuple[Ticket, Training, list[tuple[int, Seed]]]]:
        """What is still to be trained: together where it starts and trains alike."""
        ticket, training = self._ticket, self._training
        match name:
            case "rate":
                for i in missing:
                    share = 2 * i / (self.settings.particles - 1) - 1
                    lr = training.lr * (1 + self.settings.spread * share)
                    yield ticket, replace(training, lr=lr), [(i, self._own(0))]
            case "head":
                for i in missing:
                    yield self._headed(i), training, [(i, self._own(0))]
            case "none":
                yield ticket, training, [(i, self._own(0)) for i in missing]
            case "all":
                yield ticket, training, [(i, self._own(i)) for i in missing]
            case _:
                streams = _STREAMS[name]
                yield ticket, training, [(i, self._own(0).borrowing(self._own(i), *streams)) for i in missing]

    def _own(self, index: int) -> Seed:
        """The seed that the run gave to a particle of this cycle."""
        return Seed(self.subject.config.plan.seed).at("cycle", self.cycle, "particle", index)

    def _headed(self, index: int) -> Ticket:
        """The ticket with another last layer."""
        name, layer = _head(self.subject.model)
        seed = Seed(self.subject.config.plan.seed).at("cycle", self.cycle, "head", index)
        with isolated(seed, self.subject.device):
            fresh = copy.deepcopy(layer)
            fresh.reset_parameters()
        own = {f"{name}.{key}" if name else key: value for key, value in fresh.state_dict().items()}
        return Ticket({**self._ticket.weights, **own}, self._ticket.steps)

    def _missing(self, name: str) -> str | None:
        """Why this run does not have a source; None where it has."""
        train = self.subject.task.train
        if name == "augmentation" and (
            isinstance(train, BatchList) or (isinstance(train, TensorData) and train.augment is None)
        ):
            return "its training examples are not changed at random"
        if name == "dropout" and not draws(self.subject.model, self.subject.task, self._training.batch_size):
            return "its network draws no random numbers"
        if name == "head" and not hasattr(_head(self.subject.model)[1], "reset_parameters"):
            return "its last layer cannot be initialised anew"
        return None

    @property
    def _ticket(self) -> Ticket:
        ticket = self.subject.ticket
        if ticket is None:
            raise SwampError(f"{self.subject.directory.ticket} is missing: without it nothing can be trained from it.")
        return ticket

    @property
    def _training(self) -> Training:
        plan = self.subject.config.plan
        return plan.setting.training(self.subject.config.training, plan.most_particles)

    @cached_property
    def _backend(self) -> Backend:
        """The run's own way: another one rounds differently."""
        subject, chosen = self.subject, self.subject.directory.backend
        choice = Choice.from_json(subject.directory.read(chosen)) if chosen.exists() else None
        return backend_of(subject.config.backend, subject.model, subject.task, subject.config.plan, chosen=choice)

    def _directory(self, name: str) -> RunDirectory:
        """Where particles wait until all of a source are there."""
        settings = f"{name}-{self.settings.particles}" + (f"-{self.settings.spread:g}" if name == "rate" else "")
        run = f"{self.subject.config.digest()}-{name}"
        return RunDirectory(self.subject.directory.path / "noise" / settings, run)


def _head(model: nn.Module) -> tuple[str, Any]:
    """The last layer that has parameters of its own, with its name."""
    named = cast("list[tuple[str, nn.Module]]", list(cast(Any, model).named_modules()))
    return [(name, layer) for name, layer in named if [*layer.parameters(recurse=False)]][-1]


def _equal(one: State, other: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)
