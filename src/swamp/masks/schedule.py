"""Density and number of particles of every cycle."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from swamp.errors import SwampError

MAX_CYCLES = 10_000
"""A larger number is taken for a mistake."""

Count = int | Literal["auto"]
"""A number of particles, or auto: as many as are worth their cost."""


@dataclass(frozen=True)
class Schedule:
    """Density and number of particles of every cycle; cycle 0 is the first entry, usually dense."""

    densities: tuple[float, ...]
    particles: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.densities or len(self.densities) != len(self.particles):
            raise SwampError(f"a schedule needs one density and one particle count per cycle, got {self}.")
        falling = all(after < before for before, after in zip(self.densities, self.densities[1:], strict=False))
        if not falling or not all(0 < density <= 1 for density in self.densities):
            raise SwampError(f"densities must fall from at most 1 and stay above 0, got {list(self.densities)}.")
        if any(count < 1 for count in self.particles):
            raise SwampError(f"every cycle needs at least one particle, got {list(self.particles)}.")

    def __len__(self) -> int:
        return len(self.densities)

    def nnz(self, cycle: int, prunable: int) -> int:
        """Number of active weights in `cycle`, of `prunable` ones; rounded to the nearest integer."""
        return round(self.densities[cycle] * prunable)


def densities_to(
    sparsity: float, *, cycles: int | None = None, prune_fraction: Sequence[float] = (0.2,)
) -> tuple[float, ...]:
    """Densities from 1 down to exactly `1 - sparsity`.

    With `cycles`, that many equal prunings: each removes 1 - (1 - sparsity)^(1/cycles) of the remaining weights. With
    one `prune_fraction`, the smallest number of equal prunings of at most that fraction. With several, pruning k
    removes prune_fraction[k] (the last one repeats) and the last pruning is shortened to reach the target.
    """
    if not 0 <= sparsity < 1:
        raise SwampError(f"sparsity must lie in [0, 1), got {sparsity:g}: 0.95 means that 95 % of the weights go.")
    check_prune_fraction(prune_fraction)
    if cycles is not None and cycles < 1:
        raise SwampError(f"cycles must be 1 or more, got {cycles}.")
    target = 1 - sparsity
    if target == 1:
        return (1.0,)
    if cycles is None and len(prune_fraction) > 1:
        return _with_given_fractions(target, prune_fraction)
    # The tolerance prevents a fourth cycle on the way to 0.512 = 0.8^3.
    steps = cycles or max(1, math.ceil(math.log(target) / math.log(1 - prune_fraction[0]) - 1e-9))
    check_cycles(steps, f"sparsity {sparsity:g} at a prune fraction of {prune_fraction[0]:g}")
    return (*(target ** (step / steps) for step in range(steps)), target)


def densities_by_fraction(prune_fraction: Sequence[float], cycles: int) -> tuple[float, ...]:
    """Densities of `cycles` prunings; number k removes prune_fraction[k] of the active weights (the last repeats)."""
    check_prune_fraction(prune_fraction)
    if cycles < 0:
        raise SwampError(f"cycles must be 0 or more, got {cycles}.")
    check_cycles(cycles, "the plan")
    densities = [1.0]
    for step in range(cycles):
        densities.append(densities[-1] * (1 - prune_fraction[min(step, len(prune_fraction) - 1)]))
    return tuple(densities)


def particles_for(
    densities: Sequence[float], particles: Sequence[int], *, single_particle_above: float = 0.0
) -> tuple[int, ...]:
    """Number of particles of each cycle: `particles[c]`, the last one repeating.

    single_particle_above: cycles of a higher density train one particle only, the saving of SWAMP+.
    """
    if not particles or any(count < 1 for count in particles):
        raise SwampError(f"particles must be 1 or more, got {list(particles)}.")
    counts = (particles[min(cycle, len(particles) - 1)] for cycle in range(len(densities)))
    return tuple(
        1 if single_particle_above and density > single_particle_above else count
        for density, count in zip(densities, counts, strict=True)
    )


def check_prune_fraction(prune_fraction: Sequence[float]) -> None:
    """Raise SwampError unless every fraction lies in (0, 1)."""
    # 1 - fraction must lie in (0, 1) too: a fraction lost in rounding would never reach the target.
    if not prune_fraction or not all(0 < fraction < 1 and 0 < 1 - fraction < 1 for fraction in prune_fraction):
        raise SwampError(
            "prune_fraction, the fraction of the remaining weights that a cycle removes, must lie in "
            f"(0, 1), got {list(prune_fraction)}."
        )


def check_cycles(cycles: int, what: str) -> None:
    """Raise SwampError where `what` takes more than MAX_CYCLES cycles."""
    if cycles > MAX_CYCLES:
        raise SwampError(
            f"{what} takes {cycles} cycles, more than the maximum of {MAX_CYCLES}. Use fewer cycles, or a larger "
            "prune_fraction."
        )


def _with_given_fractions(target: float, prune_fraction: Sequence[float]) -> tuple[float, ...]:
    densities = [1.0]
    while True:
        after = densities[-1] * (1 - prune_fraction[min(len(densities) - 1, len(prune_fraction) - 1)])
        if after <= target * (1 + 1e-9):
            return (*densities, target)
        densities.append(after)
        check_cycles(len(densities), f"density {target:g} at a prune fraction of {prune_fraction[-1]:g}")
