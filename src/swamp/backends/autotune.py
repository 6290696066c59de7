"""Autotune: times the other backends on the task itself and uses the fastest."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from swamp.backends.base import Backend, Progress, TrainRequest
from swamp.backends.particle import Particle
from swamp.backends.sequential import Sequential
from swamp.backends.threads import Threads, cores, unsupported_reason
from swamp.backends.vmapped import MultiStream, Vmapped
from swamp.errors import Diverged, Interrupted, SwampError, unknown
from swamp.training import Task
from swamp.training.optimizers import OptimizerFactory
from swamp.training.snapshot import Snapshot

FEW_STEPS = 100
"""Optimizer steps of all particles in a run, below which nothing is timed."""
FEW_SECONDS = 10.0
"""Estimated time of a whole run, below which only Sequential is timed."""
COMPILE_SECONDS = 15.0
"""Time to compile a step on two cores. Vmapped is timed only if all training takes at least ten times as long."""
_TRIAL_SECONDS = 0.3
_WARM_UP_STEPS = 3
CANDIDATES: dict[str, Callable[..., Backend]] = {
    "sequential": Sequential,
    "threads": Threads,
    "vmapped": Vmapped,
    "multi-stream": MultiStream,
}
"""Backends to choose from: name -> (model, task, optimizer factory or None) -> backend."""


CHOSEN = "auto:"
"""Start of the name of `auto` with an earlier choice, such as auto:vmapped."""


@dataclass(frozen=True)
class Choice:
    """Which backend trains the particles of a run, and why."""

    backend: str
    why: str
    milliseconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """Time of one step of one particle, for each backend that was tried."""

    @classmethod
    def named(cls, name: str) -> "Choice":
        """The choice in a name such as auto:vmapped. Raises SwampError for an unknown backend."""
        backend = name.removeprefix(CHOSEN)
        if backend not in CANDIDATES:
            raise unknown("backend", name, [f"{CHOSEN}{known}" for known in CANDIDATES])
        return cls(backend, "an earlier run chose it.")

    @property
    def name(self) -> str:
        """Name of `auto` with this choice, which a rerun uses to give the same bits."""
        return f"{CHOSEN}{self.backend}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "Choice":
        """The choice that `to_json` described. Raises SwampError for anything else."""
        try:
            return cls(str(values["backend"]), str(values["why"]), dict(values["milliseconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SwampError(f"this is not a record of how particles are trained: {values!r}.") from error


class Autotune:
    """Times the other backends for a moment on the task itself and uses the fastest; short runs are not timed.

    The choice depends on timing, and backends round differently: pass the recorded choice to resume a run. Single
    particles, such as the ticket, are always trained by Sequential, so that runs of one task and seed share it bit for
    bit.

    Args:
        model: Architecture of the particles.
        task: Data, loss and forward pass.
        optimizer: Factory from parameters to a torch optimizer (default: the one that `training` names).
        cycles: Cycles of the run, to estimate how long it takes.
        choice: An earlier choice to keep.
        on_choice: Called with a new choice.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: OptimizerFactory | None = None,
        *,
        cycles: int = 1,
        choice: Choice | None = None,
        on_choice: Callable[[Choice], None] | None = None,
    ) -> None:
        self.parts = model, task, optimizer
        self.sequential = Sequential(*self.parts)
        self.cycles, self.on_choice = cycles, on_choice
        self.chosen: Backend | None = None
        if choice is not None:
            if choice.backend not in CANDIDATES:
                raise unknown("backend", choice.backend, CANDIDATES)
            self.chosen = CANDIDATES[choice.backend](*self.parts)

    def train(self, request: TrainRequest) -> list[Particle]:
        """See Backend.train."""
        self.choose(request)
        backend = self.sequential if request.places < 2 or self.chosen is None else self.chosen
        return backend.train(request)

    def choose(self, request: TrainRequest) -> None:
        """Time the backends on these particles, unless there is a choice or the run is short."""
        # To the end of the schedule even if `last` comes earlier: dynamic masks are trained in parts.
        training, particles = request.training, len(request.seeds)
        steps = training.epochs * self.parts[1].train.steps(training.batch_size)
        steps = (steps - request.first) * particles * self.cycles
        if particles < 2 or self.chosen is not None or steps < FEW_STEPS:
            return
        request.progress.on_stage("timing backends", once=True)
        choice, self.chosen = self._timed(request, steps)
        if self.on_choice is not None:
            self.on_choice(choice)

    def _timed(self, request: TrainRequest, steps: int) -> tuple[Choice, Backend]:
        model, task, optimizer = self.parts
        backends: dict[str, Backend] = {"sequential": self.sequential}
        times = {"sequential": seconds_a_step(self.sequential, request, 1)}
        total = steps * times["sequential"]
        if total < FEW_SECONDS:
            why = f"all of the training takes about {total:.1f} s, too little to time other backends for."
            return Choice("sequential", why, {"sequential": 1000 * times["sequential"]}), self.sequential
        left_out: list[str] = []
        on_cpu = next(model.parameters()).device.type == "cpu"
        if on_cpu:
            reason = unsupported_reason(model, task, request.training, optimizer)
            if reason is not None:
                left_out.append(f"no threads: {reason}")
            elif cores() > 1:
                backends["threads"] = Threads(*self.parts)
                times["threads"] = seconds_a_step(backends["threads"], request, cores())
        reason = _slow_stack_reason(model, total) if on_cpu else None
        vmapped = Vmapped(*self.parts)
        if reason is None:
            step = vmapped.step(request.training)
            reason = step if isinstance(step, str) else None
        if reason is None:
            stacks: dict[str, Backend] = {"vmapped": vmapped}
            if not on_cpu:
                stacks["multi-stream"] = MultiStream(*self.parts)
            backends.update(stacks)
            count = len(request.seeds)
            times.update((name, seconds_a_step(backend, request, count)) for name, backend in stacks.items())
        else:
            left_out.append(f"not stacked: {reason}")
        best = min(times, key=lambda name: times[name])
        if times[best] > 0.97 * times["sequential"]:
            best = "sequential"
        return _explained(best, times, left_out), backends[best]


def _slow_stack_reason(model: nn.Module, seconds: float) -> str | None:
    """Why a compiled stack would be slower on CPU; None where it is worth timing."""
    if any(parameter.dim() > 2 for parameter in model.parameters()):
        return "stacked convolutions become grouped ones, which are slow on CPU."
    if seconds < 10 * COMPILE_SECONDS:
        return f"compiling takes about {COMPILE_SECONDS:.0f} s, all of the training about {seconds:.0f} s."
    return None


def _explained(best: str, times: Mapping[str, float], left_out: Sequence[str]) -> Choice:
    ratio = times["sequential"] / times[best]
    why = f"{ratio:.2f} times as fast as sequential" if best != "sequential" else "nothing else was faster"
    milliseconds = {name: 1000 * seconds for name, seconds in times.items()}
    tried = ", ".join(f"{name} {ms:.3g} ms" for name, ms in milliseconds.items())
    return Choice(best, " ".join([f"{why} (a step of a particle: {tried}).", *left_out]), milliseconds)


def seconds_a_step(backend: Backend, request: TrainRequest, most: int) -> float:
    """Time of one step of one particle if the first `most` particles are trained at once. They are trained briefly."""
    seeds = request.seeds[:most]
    stopwatch = _Stopwatch(len(seeds))
    with contextlib.suppress(Interrupted):
        backend.train(replace(request, seeds=seeds, progress=stopwatch))
    return stopwatch.seconds()


class _Stopwatch(Progress):
    """Lets a training run for a moment, then stops it."""

    def __init__(self, particles: int) -> None:
        self.particles = particles
        self.at: list[float] = []

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Note the time; raise Interrupted after long enough."""
        self.at.append(time.perf_counter())
        warm_up = _WARM_UP_STEPS * self.particles
        if len(self.at) > 2 * warm_up and self.at[-1] - self.at[warm_up] > _TRIAL_SECONDS:
            raise Interrupted("timed.")

    def on_diverged(self, index: int, error: Diverged) -> None:
        """Do nothing: the real training reports it."""

    def seconds(self) -> float:
        """Time between two reports after the warm-up; infinite for a training too short to tell."""
        if len(self.at) < 2:
            return math.inf
        warm_up = min(_WARM_UP_STEPS * self.particles, len(self.at) - 2)
        return (self.at[-1] - self.at[warm_up]) / (len(self.at) - 1 - warm_up)
