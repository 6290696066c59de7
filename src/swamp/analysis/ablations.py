"""Ablation of the differences between particles: particles of one ticket and mask that differ in a single factor."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from threading import Event
from typing import Any, cast

import torch
from torch import nn

from swamp.algorithms.backend_choice import backend_of
from swamp.analysis.analysis_tasks import AnalysisSettings, AnalysisTask, Record
from swamp.analysis.barriers import evaluate_segment
from swamp.analysis.hull import gain_of_mean, size_of
from swamp.analysis.point_evaluator import PointEvaluator
from swamp.analysis.run_data import RunData
from swamp.backends import Backend, Particle, Ticket, TrainRequest
from swamp.errors import SwampError
from swamp.model_copy import copied_model
from swamp.runs.checkpoints import RunStore
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import executing
from swamp.runs.read import read_choice
from swamp.runs.run_progress import Reporter
from swamp.training import Seed, TensorData, Training
from swamp.training.average import State, mean
from swamp.training.data import BatchList
from swamp.training.dropout import draws_random
from swamp.training.module_extra_state import as_tensors
from swamp.training.rng import isolated
from swamp.training.tokens import TokenData

FACTORS = {
    "none": "nothing",
    "order": "batch order",
    "augmentation": "augmentation",
    "dropout": "dropout",
    "rate": "learning rate",
    "head": "new head",
    "all": "all, as in a run",
}
"""Name -> what differs between the particles of an ablation, as figures and tables say it."""

_STREAMS = {"order": ("order", "buckets"), "augmentation": ("augment", "loader"), "dropout": ("noise",)}


@dataclass(frozen=True)
class AblationSettings(AnalysisSettings):
    """Settings shared by all factors."""

    particles: int = 4
    """Particles per factor (two for "none")."""
    lr_spread: float = 0.1
    """Learning rates lie between 1 - lr_spread and 1 + lr_spread times the run's learning rate."""

    def __post_init__(self) -> None:
        if self.particles < 2:
            raise SwampError(f"particles must be 2 or more to compare them, got {self.particles}.")
        if not 0 < self.lr_spread < 1:
            raise SwampError(f"lr_spread must lie between 0 and 1, got {self.lr_spread:g}.")


@dataclass(frozen=True, eq=False)
class ParticleAblation:
    """Trains particles of a finished cycle again, from its ticket on its mask, with one factor that differs.

    Raises:
        SwampError: the method of the run does not rewind to a ticket, or the cycle is not finished.
    """

    run: RunData
    cycle: int
    """Index of a finished cycle."""
    settings: AblationSettings
    reporter: Reporter
    """Receives the progress of training."""
    stop: Event = field(default_factory=Event)
    """When set, training stops with Interrupted; finished particles are kept."""

    def __post_init__(self) -> None:
        plan, path = self.run.config.plan, self.run.directory.path
        if not plan.spec.rewinds:
            raise SwampError(
                f"{path} is a run of {plan.method}: its particles do not start from a ticket. Give a run of imp, swamp "
                "or another method that rewinds."
            )
        if not 0 <= self.cycle < self.run.cycles:
            raise SwampError(
                f"cycle {self.cycle} is not finished: {path} has finished cycles 0 to {self.run.cycles - 1}."
            )
        if plan.apart(self.cycle, self.run.config.training.epochs) < 1:
            raise SwampError(
                f"the particles of cycle {self.cycle} of {path} share the first part of their training, and "
                "ablations separate them at the ticket. Give a run without --branch, of swamp for example."
            )

    def tasks(self, factors: Sequence[str]) -> Iterator[AnalysisTask]:
        """One task per factor."""
        for factor in factors:
            yield AnalysisTask(f"noise/cycle-{self.cycle:02d}/{factor}", partial(self.record, factor))

    def record(self, factor: str) -> Record:
        """Distances, barrier and gain of averaging of the particles; "skipped" if the run has no such factor."""
        run, settings = self.run, self.settings
        mask = run.cycle(self.cycle).mask
        record: Record = {"cycle": self.cycle, "sparsity": mask.sparsity, "factor": factor}
        if reason := self._missing(factor):
            return {**record, "skipped": reason}
        states = [particle.weights for particle in self.particles(factor)]
        evaluator = PointEvaluator(run.model, run.task, examples=settings.examples)
        *each, average = evaluator([*states, mean(states)])
        barriers = evaluate_segment(evaluator, states[0], states[1], settings.points).barriers
        found = {
            **record,
            "data": run.held_out_split,
            "particles": len(states),
            "identical": all(_equal(states[0], state) for state in states[1:]),
            **size_of(states, mask),
            "barrier": dict(barriers.__dict__),
            "extreme_points": [{"loss": metrics.loss, "error": metrics.error} for metrics in each],
            "mean": {"loss": average.loss, "error": average.error},
            **gain_of_mean(each, average),
        }
        # Only the record is kept: nothing else needs these particles.
        shutil.rmtree(self._directory(factor).path, ignore_errors=True)
        return found

    def particles(self, factor: str) -> list[Particle]:
        """The particles of one factor: those that an interrupted session finished, the others trained now."""
        run, count = self.run, 2 if factor == "none" else self.settings.particles
        if factor == "all" and len(existing := run.particles(self.cycle)) >= count:
            return existing[:count]
        directory, config = self._directory(factor), run.config
        with directory.locked(), executing(config):
            store = RunStore(directory, self.reporter, self.stop, True, config.snapshot_seconds)
            progress = store.progress(self.cycle, count)
            found = {i: kept for i in range(count) if (kept := store.particle(self.cycle, i)) is not None}
            mask = run.cycle(self.cycle).mask
            for ticket, training, seeds in self._jobs(factor, [i for i in range(count) if i not in found]):
                first = config.plan.first_step(self.cycle, ticket.steps, config.training)
                request = TrainRequest(ticket, mask, training, seeds, first, progress=progress)
                trained = self._backend.train(request)
                found.update((particle.index, particle) for particle in trained)
        return [found[i] for i in range(count)]

    def _jobs(self, factor: str, missing: Sequence[int]) -> Iterator[tuple[Ticket, Training, list[tuple[int, Seed]]]]:
        """The trainings for missing particles; particles with equal ticket and training are trained in one call."""
        ticket, training = self._ticket, self._training
        match factor:
            case "rate":
                for i in missing:
                    offset = 2 * i / (self.settings.particles - 1) - 1
                    lr = training.lr * (1 + self.settings.lr_spread * offset)
                    yield ticket, replace(training, lr=lr), [(i, self._seed(0))]
            case "head":
                for i in missing:
                    yield self._with_new_head(i), training, [(i, self._seed(0))]
            case "none":
                yield ticket, training, [(i, self._seed(0)) for i in missing]
            case "all":
                yield ticket, training, [(i, self._seed(i)) for i in missing]
            case _:
                streams = _STREAMS[factor]
                yield ticket, training, [(i, self._seed(0).borrowing(self._seed(i), *streams)) for i in missing]

    def _seed(self, index: int) -> Seed:
        """The seed of a particle of this cycle in the run."""
        return Seed(self.run.config.plan.seed).at("cycle", self.cycle, "particle", index)

    def _with_new_head(self, index: int) -> Ticket:
        """The ticket with a newly initialised last layer."""
        name, layer = _last_layer(self.run.model)
        seed = Seed(self.run.config.plan.seed).at("cycle", self.cycle, "head", index)
        with isolated(seed, self.run.device):
            fresh = copied_model(layer)
            fresh.reset_parameters()
        own = {f"{name}.{key}" if name else key: value for key, value in as_tensors(fresh.state_dict()).items()}
        return Ticket({**self._ticket.weights, **own}, self._ticket.steps, self._ticket.state)

    def _missing(self, factor: str) -> str | None:
        """Why the particles of this run cannot differ in a factor; None if they can."""
        train = self.run.task.train
        if factor == "augmentation" and (
            isinstance(train, BatchList | TokenData) or (isinstance(train, TensorData) and train.augment is None)
        ):
            return "its training data has no random augmentation"
        if factor == "dropout" and not draws_random(self.run.model, self.run.task, self._training.batch_size):
            return "its network draws no random numbers"
        if factor == "head" and not hasattr(_last_layer(self.run.model)[1], "reset_parameters"):
            return "its last layer has no reset_parameters()"
        return None

    @property
    def _ticket(self) -> Ticket:
        ticket = self.run.ticket
        if ticket is None:
            raise SwampError(f"{self.run.directory.ticket} is missing: particles cannot be trained without the ticket.")
        return ticket

    @property
    def _training(self) -> Training:
        plan = self.run.config.plan
        return plan.training(self.run.config.training, self.cycle)

    @cached_property
    def _backend(self) -> Backend:
        """The backend of the run: another one would round differently."""
        run = self.run
        if run.problem.agent is not None:
            raise SwampError("ablations change the order of batches, and an agent is trained by its own experience.")
        return backend_of(run.config.backend, run.model, run.task, run.config.plan, choice=read_choice(run.directory))

    def _directory(self, factor: str) -> RunDirectory:
        """The directory for finished particles, which is deleted when all particles of a factor are trained."""
        settings = f"{factor}-{self.settings.particles}" + (f"-{self.settings.lr_spread:g}" if factor == "rate" else "")
        name = f"{self.run.config.digest()}-{factor}"
        return RunDirectory(self.run.directory.path / "noise" / settings, name)


def _last_layer(model: nn.Module) -> tuple[str, Any]:
    """Name and module of the last layer that has parameters itself."""
    named = cast("list[tuple[str, nn.Module]]", list(cast(Any, model).named_modules()))
    return [(name, layer) for name, layer in named if [*layer.parameters(recurse=False)]][-1]


def _equal(one: State, other: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)
