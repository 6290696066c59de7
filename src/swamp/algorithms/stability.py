"""Is the mean of the particles to be trusted? The barrier between them, measured every cycle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swamp.training import State

Point = Callable[[], State]
"""The weights at one point, made when they are asked for: a dozen large networks need not be held at once."""


@dataclass(frozen=True)
class Barrier:
    """Error barriers in [0, 1] between particles of one cycle (definition: Frankle et al. 2020)."""

    pair: float
    """max over a in [0, 1] of E((1 - a) w0 + a w1) - (E(w0) + E(w1)) / 2, of the first two particles."""
    mean: float
    """E(mean of all particles) - mean of their errors: negative where averaging helps."""

    def above(self, threshold: float) -> bool:
        """Whether either barrier is higher than `threshold`."""
        return max(self.pair, self.mean) > threshold

    def warning(self, cycle: int, sparsity: float, threshold: float) -> str | None:
        """What to tell the user, with the number; None where the particles average well."""
        if not self.above(threshold):
            return None
        return (
            f"cycle {cycle} (sparsity {sparsity:.4f}): the error barrier between particles is "
            f"{100 * max(self.pair, self.mean):.1f} points, above {100 * threshold:.1f}. Their mean may be worse than "
            "each of them: the ticket is not stable at this sparsity. Take it later (--ticket-epochs), prune less a "
            "cycle (--prune-fraction) or lower the learning rate."
        )


def barrier(ends: Sequence[float], average: float, inner: Sequence[float]) -> Barrier:
    """Both barriers from errors in [0, 1]: of the particles, of their mean, and between the first two particles.

    Every point, the ends too, is to be evaluated with statistics made for it, as BatchNorm networks need.
    """
    worst = max([*ends[:2], *inner])
    return Barrier(worst - (ends[0] + ends[1]) / 2, average - sum(ends) / len(ends))
