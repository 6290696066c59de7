"""Trainings that diverge, i.e. get a loss or weights that are not finite: restarted, dropped, or the end of the run."""

from dataclasses import replace

from swamp.algorithms.cycle import Divergence
from swamp.algorithms.plan import Plan
from swamp.algorithms.store import Store
from swamp.backends.ticket import TRUNK
from swamp.errors import Diverged, warn
from swamp.training import Seed, Training

RESTARTS = 3
"""Times that a particle is trained again, with half the learning rate each time."""


class DivergencePolicy:
    """Applies `on_divergence` of the plan. `store` keeps all divergences, so that a resumed run behaves the same.

    A restarted particle starts at the ticket again, with other random numbers, which its seed determines.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.policy, self.store = plan.on_divergence, store
        self.divergences = list(store.divergences())

    def of(self, cycle: int | None) -> list[Divergence]:
        """Divergences of a cycle (None: the ticket), ordered by particle and attempt."""
        found = (one for one in self.divergences if one.cycle == cycle)
        return sorted(found, key=lambda one: (one.particle, -one.lr))

    def count(self, cycle: int | None, index: int) -> int:
        """How often a particle diverged."""
        return sum(one.particle == index for one in self.of(cycle))

    def cycle_restarts(self, cycle: int) -> int:
        """How often a cycle was restarted as a whole, because its particles share changing masks."""
        return len(self.of(cycle)) if self.policy == "restart" else 0

    def remaining(self, cycle: int | None, count: int) -> list[int]:
        """Numbers of the particles of a cycle, out of `count`, that are not dropped."""
        return [i for i in range(count) if not (self.policy == "drop" and self.count(cycle, i))]

    def record(
        self, cycle: int | None, index: int, count: int, lr: float, first: int, error: Diverged, others: int = 0
    ) -> None:
        """Keep that a training with learning rate `lr`, started at step `first`, diverged. others: see Divergence.

        Raises Diverged where the run cannot continue.
        """
        if self.policy == "stop":
            raise error
        retry_lr = lr / 2 if self.policy == "restart" else None
        reason = str(error).removeprefix(whose(index))
        divergence = Divergence(cycle, index, lr, error.steps - first, reason, retry_lr, others)
        self.divergences.append(divergence)
        self.store.keep_divergence(divergence)
        self._raise_if_final(cycle, index, count, error)
        warn(divergence.sentence)

    def check(self, cycle: int | None, count: int) -> None:
        """Raise Diverged if a divergence, perhaps of an earlier session, ends the run."""
        for one in self.of(cycle):
            self._raise_if_final(cycle, one.particle, count, Diverged(f"{whose(one.particle)}{one.why}"))

    def _raise_if_final(self, cycle: int | None, index: int, count: int, error: Diverged) -> None:
        if self.policy == "restart" and self.count(cycle, index) > RESTARTS:
            raise Diverged(
                f"{error} It diverged {RESTARTS + 1} times, with half the learning rate each time.", error.steps
            )
        # Without the trunk there is nothing that the particles could start from.
        if self.policy == "drop" and (index == TRUNK or len({one.particle for one in self.of(cycle)}) >= count):
            raise Diverged(f"{error} No particle is left to go on with.", error.steps)


def whose(index: int) -> str:
    """How the message of a divergence begins."""
    return "the trunk: " if index == TRUNK else f"particle {index}: "


def restart_seed(seed: Seed, times: int) -> Seed:
    """The seed of a training that diverged `times` times before."""
    return seed.at("restart", times) if times else seed


def reduced_lr(training: Training, times: int) -> Training:
    """The training with half the learning rate for each of `times` divergences."""
    return replace(training, lr=training.lr / 2**times)
