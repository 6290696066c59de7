"""Auto: the backend that times the others on the task itself and keeps to the fastest."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from swamp.backends.backend import Backend, Group, Progress, Silent, train_groups
from swamp.backends.particle import Particle
from swamp.backends.sequential import Sequential
from swamp.backends.stacked import Forked, Stacked
from swamp.backends.threads import Threads, cores, obstacle
from swamp.backends.ticket import Ticket
from swamp.errors import Diverged, Interrupted, SwampError, unknown
from swamp.masks import Mask
from swamp.training import OptimizerFactory, Seed, Snapshot, Task, Training

FEW_STEPS = 100
"""Steps of particles in a whole run below which nothing is timed, not even one after the other."""
FEW_SECONDS = 10.0
"""Time of a whole run below which no other way is tried."""
COMPILE_SECONDS = 15.0
"""What compiling a step takes on two cores; it must be small beside the training to be tried."""
_TRIAL_SECONDS = 0.3
_WARM_STEPS = 3
WAYS: dict[str, Callable[..., Backend]] = {
    "sequential": Sequential,
    "threads": Threads,
    "stacked": Stacked,
    "forked": Forked,
}
"""What there is to choose from: name -> (model, task, optimizer factory or None) -> backend."""


@dataclass(frozen=True)
class Choice:
    """Which backend trains the particles of a run, and why."""

    backend: str
    why: str
    milliseconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """Time of one step of one particle, for each backend that was tried."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "Choice":
        """What `to_json` gave. Raises SwampError for anything else."""
        try:
            return cls(str(values["backend"]), str(values["why"]), dict(values["milliseconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SwampError(f"this is not a record of how particles are trained: {values!r}.") from error


class Auto:
    """Times the others for a moment on the task itself, and keeps to the fastest; short runs take no time for it.

    A choice by timing may fall either way where two are close, and they round differently: `tell` hears of it, and
    given back as `chosen` it makes an interrupted run go on as it began. The ticket, as any single particle, is
    trained by Sequential, so that runs on one task and seed share it to the last bit.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: OptimizerFactory | None = None,
        *,
        cycles: int = 1,
        chosen: Choice | None = None,
        tell: Callable[[Choice], None] | None = None,
    ) -> None:
        self.parts = model, task, optimizer
        self.sequential = Sequential(*self.parts)
        self.cycles, self.tell = cycles, tell
        self.chosen: tuple[Choice, Backend] | None = None
        if chosen is not None:
            if chosen.backend not in WAYS:
                raise unknown("backend", chosen.backend, WAYS)
            self.chosen = chosen, WAYS[chosen.backend](*self.parts)

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
        groups = [Group(ticket, mask, seeds, progress or Silent())]
        return self.train_groups(groups, training, first=first, last=last)[0]

    def train_groups(
        self, groups: Sequence[Group], training: Training, *, first: int = 0, last: int | None = None
    ) -> list[list[Particle]]:
        """See AtOnce."""
        self.decide(groups, training, first, last)
        alone = sum(group.size for group in groups) < 2
        backend = self.sequential if alone or self.chosen is None else self.chosen[1]
        return train_groups(backend, groups, training, first=first, last=last)

    def decide(self, groups: Sequence[Group], training: Training, first: int, last: int | None) -> None:
        """Choose before training, where training these particles would: other ranks are told of it first."""
        count = sum(len(group.seeds) for group in groups)
        steps = training.epochs * self.parts[1].train.steps(training.batch_size)
        # Up to the end though `last` comes earlier: masks that change are trained a part at a time.
        steps = (steps - first) * count * self.cycles
        if count < 2 or self.chosen is not None or steps < FEW_STEPS:
            return
        self.chosen = self._choose(_Trial(groups, count, training, first, last), steps)
        if self.tell is not None:
            self.tell(self.chosen[0])

    def _choose(self, trial: "_Trial", steps: int) -> tuple[Choice, Backend]:
        model, task, _ = self.parts
        backends: dict[str, Backend] = {"sequential": self.sequential}
        times = {"sequential": trial.seconds(self.sequential, 1)}
        whole = steps * times["sequential"]
        if whole < FEW_SECONDS:
            why = f"all of the training takes about {whole:.1f} s, too little to time other ways for."
            return Choice("sequential", why, {"sequential": 1000 * times["sequential"]}), self.sequential
        left_out: list[str] = []
        on_cpu = next(model.parameters()).device.type == "cpu"
        if on_cpu:
            why_not = obstacle(model, task, trial.training)
            if why_not is not None:
                left_out.append(f"no threads: {why_not}")
            elif cores() > 1:
                backends["threads"] = Threads(*self.parts)
                times["threads"] = trial.seconds(backends["threads"], cores())
        why_not = _not_stacked(model, whole) if on_cpu else None
        stacked = Stacked(*self.parts)
        if why_not is None:
            step = stacked.step(trial.training)
            why_not = step if isinstance(step, str) else None
        if why_not is None:
            ways: dict[str, Backend] = (
                {"stacked": stacked} if on_cpu else {"stacked": stacked, "forked": Forked(*self.parts)}
            )
            backends.update(ways)
            times.update((name, trial.seconds(way, trial.count)) for name, way in ways.items())
        else:
            left_out.append(f"not stacked: {why_not}")
        best = min(times, key=lambda name: times[name])
        if times[best] > 0.97 * times["sequential"]:
            best = "sequential"
        return _explained(best, times, left_out), backends[best]


def _not_stacked(model: nn.Module, seconds: float) -> str | None:
    """Why compiling a stacked step on CPU would be a loss; None where it is worth the try."""
    if any(parameter.dim() > 2 for parameter in model.parameters()):
        return "stacked convolutions become grouped ones, which are slow on CPU."
    if seconds < 10 * COMPILE_SECONDS:
        return f"compiling takes about {COMPILE_SECONDS:.0f} s, all of the training about {seconds:.0f} s."
    return None


def _explained(best: str, times: Mapping[str, float], left_out: Sequence[str]) -> Choice:
    ratio = times["sequential"] / times[best]
    why = f"{ratio:.2f} times as fast as one after the other" if best != "sequential" else "nothing else was faster"
    milliseconds = {name: 1000 * seconds for name, seconds in times.items()}
    tried = ", ".join(f"{name} {ms:.3g} ms" for name, ms in milliseconds.items())
    return Choice(best, " ".join([f"{why} (a step of a particle: {tried}).", *left_out]), milliseconds)


@dataclass(frozen=True)
class _Trial:
    """The first steps of a training, taken only to time them."""

    groups: Sequence[Group]
    count: int
    """Particles in all groups."""
    training: Training
    first: int
    last: int | None

    def seconds(self, backend: Backend, most: int) -> float:
        """Time of one step of one particle, where the first `most` of them are trained at once."""
        left = min(most, self.count)
        watch, groups = _Stopwatch(left), list[Group]()
        for group in self.groups:
            seeds = group.seeds[:left]
            left -= len(seeds)
            groups.append(Group(group.ticket, group.mask, seeds, watch))
        with contextlib.suppress(Interrupted):
            train_groups(backend, groups, self.training, first=self.first, last=self.last)
        return watch.seconds()


class _Stopwatch(Silent):
    """Lets a training run for a moment, then stops it."""

    def broke(self, index: int, error: Diverged) -> None:
        """Its time is all that was asked: whoever trains it in earnest is told."""

    def __init__(self, particles: int) -> None:
        self.particles = particles
        self.at: list[float] = []

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Note the time; enough is enough."""
        self.at.append(time.perf_counter())
        warm = _WARM_STEPS * self.particles
        if len(self.at) > 2 * warm and self.at[-1] - self.at[warm] > _TRIAL_SECONDS:
            raise Interrupted("timed.")

    def seconds(self) -> float:
        """Between two reports, after the first steps, which are slower. Infinite for a training too short to tell."""
        if len(self.at) < 2:
            return math.inf
        warm = min(_WARM_STEPS * self.particles, len(self.at) - 2)
        return (self.at[-1] - self.at[warm]) / (len(self.at) - 1 - warm)
