"""Train the ticket, and the particles of a cycle; what an interrupted run finished is read back."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from swamp.algorithms.cycle import Divergence, Wave
from swamp.algorithms.cycle_spec import CycleSpec
from swamp.algorithms.divergence import DivergencePolicy, reduced_lr, restart_seed, whose
from swamp.algorithms.setup import Setup
from swamp.algorithms.waves import Waves
from swamp.backends import Particle, Progress, Ticket, TrainRequest
from swamp.backends.base import ForwardingProgress
from swamp.backends.ticket import TRUNK, Trunk
from swamp.errors import Diverged, SwampError
from swamp.masks import Mask
from swamp.training import Seed
from swamp.training.average import State
from swamp.training.snapshot import Snapshot


@dataclass(frozen=True, eq=False)
class Trained:
    """The particles of a cycle, and what they cost."""

    particles: list[Particle]
    masks: tuple[Mask, ...]
    """The mask of each particle; all are equal, unless each has its own."""
    steps: int
    """Optimizer steps of all particles, diverged trainings included; a shared trunk counts once."""
    flops: float
    seconds: float
    """Training time in earlier, interrupted sessions."""
    samples: State | None = None
    """Mean over the samples of a cyclic tail, which have different masks; None where the particles are averaged."""
    notes: tuple[str, ...] = ()
    """Warnings for the record."""
    projected: bool = False
    """Whether the particles were pruned after their last step, which makes their BatchNorm statistics stale."""
    trunk: int = 0
    """Steps of the trunk that the particles share; `steps` counts them once."""
    sequential_steps: int = 0
    """Steps one after another where all particles train at the same time, diverged trainings included."""
    waves: tuple[Wave, ...] = ()
    """How their number was chosen."""


def train_ticket(setup: Setup) -> Ticket:
    """The weights at which all particles start: read back, or trained now."""
    if setup.plan.spec.independent:
        return setup.initial
    stored = setup.store.ticket()
    if stored is not None:
        return stored
    ticket = setup.initial
    if setup.ticket_steps:
        spec = CycleSpec(ticket, setup.dense, setup.ticket_training)
        trained: list[Particle] = []
        try:
            for attempt in _attempts(setup, None, spec, [(0, setup.seed.at("ticket"))], trained):
                trained += setup.backend.train(attempt)
        except Diverged as error:
            raise Diverged(f"the ticket diverged: {str(error).removeprefix('particle 0: ')}", error.steps) from error
        ticket = Ticket(trained[0].weights, setup.ticket_steps, trained[0].state)
    setup.store.keep_ticket(ticket)
    return ticket


def train_particles(setup: Setup, index: int, spec: CycleSpec) -> Trained:
    """The particles of cycle `index`, trained on the fixed mask of `spec`, from their trunk if they share one."""
    count = setup.schedule.particles[index]
    particles = _stored(setup, index, spec, count)
    seconds = sum(particle.seconds for particle in particles)
    shared, trunk = _trunk_steps(setup, index, spec), None
    if shared and _missing(setup, index, count, particles):
        trunk = setup.store.trunk(index)
        seconds += trunk.seconds if trunk else 0.0
        trunk = trunk or _train_trunk(setup, index, spec, shared)
        lower = reduced_lr(spec.training, setup.divergence.count(index, TRUNK))
        spec = replace(spec, training=lower, first=spec.first + shared)
    seeds = [(i, setup.seed.at("cycle", index, "particle", i)) for i in range(count)]

    def train(count: int) -> list[Particle]:
        """The particles with a number below `count`."""
        for attempt in _attempts(setup, index, spec, seeds[:count], particles, shared):
            particles.extend(setup.backend.train(replace(attempt, trunk=trunk)))
        particles.sort(key=lambda particle: particle.index)
        return [particle for particle in particles if particle.index < count]

    plan, waves, sizes = setup.plan, (), [count]
    if plan.adaptive(index):
        chooser = Waves(plan.first_wave(index), count, plan.wave, plan.least_gain_of(index))
        kept, waves, sizes = chooser.train(train, setup.evaluator)
    else:
        kept = train(count)
    paid = [one for one in particles if one.index < sizes[-1]]
    # Diverged trainings were paid for too.
    steps = shared + sum(one.steps for one in (*paid, *setup.divergence.of(index)))
    flops = steps * setup.batch * setup.flops.training_step(spec.mask, spec.training)
    return Trained(
        kept,
        (spec.mask,) * len(kept),
        steps,
        flops,
        seconds,
        trunk=shared,
        sequential_steps=shared + _longest(paid, setup.divergence.of(index), sizes),
        waves=waves,
    )


def _longest(particles: Sequence[Particle], divergences: Sequence[Divergence], waves: Sequence[int]) -> int:
    """Steps of the particle with the most of them in each wave, trainings that diverged included; those of the trunk in
    any case. waves: number of particles after each wave.
    """
    of_each = {particle.index: particle.steps for particle in particles}
    for one in divergences:
        of_each[one.particle] = of_each.get(one.particle, 0) + one.steps
    waves = [0, *waves]
    return of_each.pop(TRUNK, 0) + sum(
        max((of_each.get(i, 0) for i in range(first, last)), default=0) for first, last in pairwise(waves)
    )


def _trunk_steps(setup: Setup, index: int, spec: CycleSpec) -> int:
    """Steps of the trunk that the particles of a cycle share; each has at least one step of its own."""
    steps = spec.training.epochs * setup.per_epoch - spec.first
    return steps - setup.plan.steps_apart(index, setup.options.epochs, steps)


def _train_trunk(setup: Setup, index: int, spec: CycleSpec, steps: int) -> Trunk:
    """Train the first `steps` steps of a cycle once, and store them with the state of the optimizer."""
    policy, count = setup.divergence, setup.schedule.particles[index]
    began = time.perf_counter()
    while True:
        policy.check(index, count)
        times = policy.count(index, TRUNK)
        training, seed = reduced_lr(spec.training, times), restart_seed(setup.seed.at("cycle", index, "trunk"), times)
        inner = setup.store.progress(index, count, trunk=steps)
        total = spec.training.epochs * setup.per_epoch
        progress = _TrunkProgress(inner, policy, index, training.lr, spec.first, spec.first + steps, total)
        request = TrainRequest(
            spec.start, spec.mask, training, [(TRUNK, seed)], spec.first, spec.first + steps, progress
        )
        for trained in setup.backend.train(request):
            assert progress.end is not None
            trunk = Trunk(progress.end, trained.state, time.perf_counter() - began)
            setup.store.keep_trunk(index, trunk)
            return trunk


def _stored(setup: Setup, index: int, spec: CycleSpec, count: int) -> list[Particle]:
    """The particles of a cycle that an interrupted run finished."""
    found = [particle for i in range(count) if (particle := setup.store.particle(index, i)) is not None]
    for particle in found:
        if (particle.ticket, particle.mask) != (spec.start.id, spec.mask.digest):
            raise SwampError(
                f"the stored particle {particle.index} of cycle {index} was trained from another ticket or mask "
                "than this run has. Its files were mixed with another run's: delete that cycle's folder, then resume."
            )
    return found


def _missing(setup: Setup, cycle: int | None, count: int, finished: Sequence[Particle]) -> set[int]:
    """Indices of the particles of a cycle that are neither finished nor dropped. cycle None: the ticket."""
    return {*setup.divergence.remaining(cycle, count)} - {particle.index for particle in finished}


def _attempts(
    setup: Setup,
    cycle: int | None,
    spec: CycleSpec,
    seeds: Sequence[tuple[int, Seed]],
    finished: Sequence[Particle],
    trunk: int = 0,
) -> Iterator[TrainRequest]:
    """Yield requests until each particle is dropped or in `finished`, to which the caller adds. cycle None: ticket.

    trunk: steps of the trunk that the particles share.
    """
    policy, count = setup.divergence, len(seeds)
    while True:
        policy.check(cycle, count)
        missing = _missing(setup, cycle, count, finished)
        left = [(i, seed) for i, seed in seeds if i in missing]
        if not left:
            return
        # Particles that diverged equally often have the same learning rate, and train at once.
        times = min(policy.count(cycle, i) for i, _ in left)
        group = [(i, restart_seed(seed, times)) for i, seed in left if policy.count(cycle, i) == times]
        training = reduced_lr(spec.training, times)
        inner = setup.store.progress(cycle, count, trunk=trunk)
        progress = _PolicyProgress(inner, policy, cycle, count, training.lr, spec.first)
        last = setup.ticket_steps if cycle is None else None
        yield TrainRequest(spec.start, spec.mask, training, group, spec.first, last, progress)


class _PolicyProgress(ForwardingProgress):
    """Applies the divergence policy to the particles of one cycle."""

    def __init__(
        self, inner: Progress, policy: DivergencePolicy, cycle: int | None, count: int, lr: float, first: int
    ) -> None:
        super().__init__(inner)
        self.places = count
        self.policy, self.cycle, self.lr, self.first = policy, cycle, lr, first

    def on_diverged(self, index: int, error: Diverged) -> None:
        """Record it. Raises Diverged where the run cannot continue."""
        self.policy.record(self.cycle, index, self.places, self.lr, self.first, error)


class _TrunkProgress(ForwardingProgress):
    """Takes the snapshot at the end of a trunk, and applies the divergence policy to it."""

    def __init__(
        self, inner: Progress, policy: DivergencePolicy, cycle: int, lr: float, first: int, last: int, total: int
    ) -> None:
        super().__init__(inner)
        # One training: it rounds as the ticket does, whichever backend trains the particles.
        self.places = 1
        self.policy, self.cycle, self.lr = policy, cycle, lr
        self.first, self.last, self.total = first, last, total
        self.end: Snapshot | None = None

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on to `inner`, as a step of the whole training."""
        if step == self.last:
            self.end = snapshot()
        self.inner.on_step(index, step, self.total, snapshot)

    def load_snapshot(self, index: int) -> Snapshot | None:
        """Pass it on to `inner`; a training that was stopped after its last step takes no other."""
        found = self.inner.load_snapshot(index)
        if found is not None and found.step == self.last:
            self.end = found
        return found

    def on_finished(self, particle: Particle) -> None:
        """Do nothing: the trunk is stored with its optimizer state."""

    def on_diverged(self, index: int, error: Diverged) -> None:
        """Record it. Raises Diverged where the run cannot continue."""
        named = Diverged(str(error).replace(f"particle {TRUNK}: ", whose(TRUNK)), error.steps)
        self.policy.record(self.cycle, index, 1, self.lr, self.first, named)
