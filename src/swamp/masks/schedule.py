"""How dense each cycle is, and how many particles it trains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swamp.errors import SwampError

MOST_CYCLES = 10_000
"""More would take longer to write down than anybody trains; what asks for them is a slip."""


@dataclass(frozen=True)
class Schedule:
    """Density and number of particles of every cycle; cycle 0 is the first entry, usually dense."""

    densities: tuple[float, ...]
    particles: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.densities or len(self.densities) != len(self.particles):
            raise SwampError(f"a schedule needs one density and one particle count a cycle, got {self}.")
        falling = all(after < before for before, after in zip(self.densities, self.densities[1:], strict=False))
        if not falling or not all(0 < density <= 1 for density in self.densities):
            raise SwampError(f"densities must fall from at most 1 and stay above 0, got {list(self.densities)}.")
        if any(count < 1 for count in self.particles):
            raise SwampError(f"every cycle needs at least one particle, got {list(self.particles)}.")

    def __len__(self) -> int:
        return len(self.densities)

    def kept(self, cycle: int, prunable: int) -> int:
        """Weights that live in `cycle`, out of `prunable`: the nearest whole number."""
        return round(self.densities[cycle] * prunable)


def densities_to(sparsity: float, *, cycles: int | None = None, alpha: Sequence[float] = (0.2,)) -> tuple[float, ...]:
    """Densities from 1 down to exactly `1 - sparsity`.

    With `cycles`, that many equal prunings: each removes 1 - (1 - sparsity)^(1/cycles) of the survivors. With one
    `alpha`, the fewest equal prunings none of which removes more than alpha. With several, pruning k removes
    alpha[k] (the last one repeats) and the last pruning is cut to hit the target.
    """
    if not 0 <= sparsity < 1:
        raise SwampError(f"sparsity must lie in [0, 1), got {sparsity:g}: 0.95 means that 95 % of the weights go.")
    check_alpha(alpha)
    if cycles is not None and cycles < 1:
        raise SwampError(f"cycles must be 1 or more, got {cycles}.")
    target = 1 - sparsity
    if target == 1:
        return (1.0,)
    if cycles is None and len(alpha) > 1:
        return _in_given_steps(target, alpha)
    # The small allowance keeps 0.8^3 from asking for a fourth cycle on the way to 0.512.
    steps = cycles or max(1, math.ceil(math.log(target) / math.log(1 - alpha[0]) - 1e-9))
    check_cycles(steps, f"sparsity {sparsity:g} by alpha {alpha[0]:g}")
    return (*(target ** (step / steps) for step in range(steps)), target)


def densities_by_rate(alpha: Sequence[float], cycles: int) -> tuple[float, ...]:
    """Densities of `cycles` prunings, pruning k removing alpha[k] of the survivors (the last one repeats)."""
    check_alpha(alpha)
    if cycles < 0:
        raise SwampError(f"cycles must be 0 or more, got {cycles}.")
    check_cycles(cycles, "the plan")
    densities = [1.0]
    for step in range(cycles):
        densities.append(densities[-1] * (1 - alpha[min(step, len(alpha) - 1)]))
    return tuple(densities)


def particles_for(
    densities: Sequence[float], particles: Sequence[int], *, single_above: float = 0.0
) -> tuple[int, ...]:
    """Particle counts cycle by cycle: `particles[c]`, the last one repeating.

    `single_above` is SWAMP+'s saving: cycles denser than that train one particle only.
    """
    if not particles or any(count < 1 for count in particles):
        raise SwampError(f"particles must be 1 or more, got {list(particles)}.")
    wanted = (particles[min(cycle, len(particles) - 1)] for cycle in range(len(densities)))
    return tuple(
        1 if single_above and density > single_above else count
        for density, count in zip(densities, wanted, strict=True)
    )


def check_alpha(alpha: Sequence[float]) -> None:
    """Raise SwampError unless every pruning rate lies in (0, 1)."""
    # The rate that is left must lie in (0, 1) too: a rate lost in rounding would never reach its target.
    if not alpha or not all(0 < rate < 1 and 0 < 1 - rate < 1 for rate in alpha):
        raise SwampError(f"alpha, the share of the survivors a cycle removes, must lie in (0, 1), got {list(alpha)}.")


def _in_given_steps(target: float, alpha: Sequence[float]) -> tuple[float, ...]:
    densities = [1.0]
    while True:
        after = densities[-1] * (1 - alpha[min(len(densities) - 1, len(alpha) - 1)])
        if after <= target * (1 + 1e-9):
            return (*densities, target)
        densities.append(after)
        check_cycles(len(densities), f"density {target:g} by alpha {alpha[-1]:g}")


def check_cycles(cycles: int, what: str) -> None:
    """Raise SwampError where `what` takes more cycles than there may be."""
    if cycles > MOST_CYCLES:
        raise SwampError(
            f"{what} takes {cycles} cycles, and {MOST_CYCLES} are the most. Ask for fewer (cycles, alpha)."
        )
