"""Train the ticket, and the particles of a cycle; what an interrupted run finished is read back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swamp.algorithms.cycle_spec import CycleSpec
from swamp.algorithms.divergence import DivergencePolicy, reduced_lr, restart_seed
from swamp.algorithms.setup import Setup
from swamp.backends import Particle, Progress, Ticket, TrainRequest
from swamp.backends.base import ForwardingProgress
from swamp.errors import Diverged, SwampError
from swamp.masks import Mask
from swamp.training import Seed
from swamp.training.average import State


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
    """The particles of cycle `index`, trained on the fixed mask of `spec`."""
    count = setup.schedule.particles[index]
    particles = _stored(setup, index, spec, count)
    seconds = sum(particle.seconds for particle in particles)
    seeds = [(i, setup.seed.at("cycle", index, "particle", i)) for i in range(count)]
    for attempt in _attempts(setup, index, spec, seeds, particles):
        particles += setup.backend.train(attempt)
    particles.sort(key=lambda particle: particle.index)
    # Diverged trainings were paid for too.
    steps = sum(one.steps for one in (*particles, *setup.divergence.of(index)))
    flops = steps * setup.batch * setup.flops.training_step(spec.mask, spec.training)
    return Trained(particles, (spec.mask,) * len(particles), steps, flops, seconds)


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


def _attempts(
    setup: Setup, cycle: int | None, spec: CycleSpec, seeds: Sequence[tuple[int, Seed]], finished: Sequence[Particle]
) -> Iterator[TrainRequest]:
    """Yield requests until each particle is dropped or in `finished`, to which the caller adds. cycle None: ticket."""
    policy, count = setup.divergence, len(seeds)
    while True:
        policy.check(cycle, count)
        missing = {*policy.remaining(cycle, count)} - {particle.index for particle in finished}
        left = [(i, seed) for i, seed in seeds if i in missing]
        if not left:
            return
        # Particles that diverged equally often have the same learning rate, and train at once.
        times = min(policy.count(cycle, i) for i, _ in left)
        group = [(i, restart_seed(seed, times)) for i, seed in left if policy.count(cycle, i) == times]
        training = reduced_lr(spec.training, times)
        inner = setup.store.progress(cycle, count)
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
