"""Backend: trains copies of a ticket. Progress: where it reports. The cycle loop needs nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from swamp.backends.particle import Particle
from swamp.backends.ticket import Ticket, Trunk
from swamp.errors import Diverged
from swamp.masks import Mask
from swamp.training import Seed, Training
from swamp.training.snapshot import Snapshot


class Progress:
    """Receives the reports of a backend, and stores unfinished trainings. This base class does neither."""

    places: int = 0
    """Number of particles in the whole cycle, including finished and diverged ones; their indices are 0 to places - 1.
    Backends choose numbers of threads and sizes of stacks by it, so that a resumed run rounds as before. 0: use the
    number of particles in the request."""
    address: Any = None
    """JSON value from which another rank can open its own progress of these particles; None if that is impossible."""

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Called after step `step` of `total` of particle `index`. May save `snapshot()`, or raise Interrupted."""

    def on_stage(self, name: str, *, once: bool = False) -> None:
        """Called before work other than training steps, e.g. "evaluating". once: not repeated in every cycle."""

    def load_snapshot(self, index: int) -> Snapshot | None:
        """The snapshot at which an interrupted training of particle `index` stopped; None starts at the ticket."""
        return None

    def on_last_step(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Called after the last batched step. Save a snapshot: resuming a smaller stack would change rounding."""

    def on_finished(self, particle: Particle) -> None:
        """Called as soon as a particle is trained, so that it can be stored."""

    def on_diverged(self, index: int, error: Diverged) -> None:
        """Called when the loss or weights of particle `index` are not finite.

        Returning leaves the particle out and trains the others; this base class raises `error`.
        """
        raise error

    def on_remote_step(self, index: int, step: int, total: int) -> None:
        """Called after step `step` of `total` of a particle that another rank trains."""

    def load_particle(self, index: int) -> Particle | None:
        """A finished particle that another rank has stored; None while there is none."""
        return None

    def load_trunk(self) -> Trunk | None:
        """The trunk of these particles that another rank has stored; None while there is none."""
        return None


class ForwardingProgress(Progress):
    """Passes every report on to `inner`; a subclass overrides what it changes."""

    def __init__(self, inner: Progress) -> None:
        self.inner = inner
        self.places, self.address = inner.places, inner.address

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on to `inner`."""
        self.inner.on_step(index, step, total, snapshot)

    def on_stage(self, name: str, *, once: bool = False) -> None:
        """Pass it on to `inner`."""
        self.inner.on_stage(name, once=once)

    def load_snapshot(self, index: int) -> Snapshot | None:
        """Pass it on to `inner`."""
        return self.inner.load_snapshot(index)

    def on_last_step(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on to `inner`."""
        self.inner.on_last_step(index, snapshot)

    def on_finished(self, particle: Particle) -> None:
        """Pass it on to `inner`."""
        self.inner.on_finished(particle)

    def on_diverged(self, index: int, error: Diverged) -> None:
        """Pass it on to `inner`."""
        self.inner.on_diverged(index, error)

    def on_remote_step(self, index: int, step: int, total: int) -> None:
        """Pass it on to `inner`."""
        self.inner.on_remote_step(index, step, total)

    def load_particle(self, index: int) -> Particle | None:
        """Pass it on to `inner`."""
        return self.inner.load_particle(index)

    def load_trunk(self) -> Trunk | None:
        """Pass it on to `inner`."""
        return self.inner.load_trunk()


@dataclass(frozen=True, eq=False)
class TrainRequest:
    """The particles that `Backend.train` is asked for. All start at `mask * ticket.weights`, or at the trunk's end."""

    ticket: Ticket
    """Weights at which every particle starts."""
    mask: Mask
    """Weights that are trained; all others stay exactly zero."""
    training: Training
    """Learning rates, epochs, averaging."""
    seeds: Sequence[tuple[int, Seed]]
    """For each particle, its index in the cycle and the seed of its batch order and dropout."""
    first: int = 0
    """Step at which training starts, counted from the beginning of the schedule."""
    last: int | None = None
    """Step at which training stops; None: the end of the schedule."""
    progress: Progress = field(default_factory=Progress)
    """Where steps, snapshots and finished particles are reported."""
    trunk: Trunk | None = None
    """Where every particle starts instead of the ticket, from which it was trained on this mask to step `first`."""

    @property
    def places(self) -> int:
        """Number of particles in the cycle, counting those already trained or diverged (see Progress.places)."""
        return self.progress.places or len(self.seeds)

    def last_step(self, per_epoch: int) -> int:
        """The step at which training stops, with `per_epoch` steps in an epoch."""
        return self.training.epochs * per_epoch if self.last is None else self.last


class Backend(Protocol):
    """Trains particles: sequentially, concurrently, on several machines, or with a user's own trainer.

    For the same arguments every backend returns the same particles, up to rounding where its arithmetic differs.
    """

    def train(self, request: TrainRequest) -> list[Particle]:
        """Train one particle for each seed, with a fresh optimizer.

        Args:
            request: The particles to train, and how.

        Returns:
            The particles in the order of `request.seeds`. A particle whose loss or weights are not finite is reported
            to `progress.on_diverged`. If that raises no error, the particle is left out; the others are not affected.

        Raises:
            Diverged: A particle diverged and `progress` did not allow the others to go on.
            Interrupted: `progress` asked to stop; the trainings in progress were offered to it as snapshots.
        """
        ...
