"""The spectrum of a symmetric matrix that is known by its products: largest eigenvalues, and density of all."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from swamp.analysis.hessian import Product
from swamp.errors import SwampError

_REACH = 5
"""Widths that the grid of a density goes beyond the outermost eigenvalues: nothing to speak of lies farther out."""


@dataclass(frozen=True, eq=False)
class Ritz:
    """What one Lanczos run tells: a few values that stand for all eigenvalues, in ascending order (float64, on CPU)."""

    values: Tensor
    """Approximate eigenvalues (steps,). One that several directions share appears once."""
    residuals: Tensor
    """|A y - value * y| for the unit vector y that belongs to each: an eigenvalue of A is at most so far off."""
    weights: Tensor
    """Squared share of each y in the starting vector; they add up to 1."""


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue and how far off it may be."""

    value: float
    residual: float


@dataclass(frozen=True)
class Density:
    """Density of eigenvalues on a grid of even steps; its integral is 1."""

    at: tuple[float, ...]
    value: tuple[float, ...]


def lanczos(product: Product, starts: Tensor, steps: int) -> list[Ritz]:
    """Run Lanczos from each row of `starts` (run, n), all at once, with full re-orthogonalisation.

    A run takes one product a step and ends where its Krylov space does, at the latest after n steps. For a block of A
    (`restricted`), starts must lie in it. Memory: run * steps * n numbers in float64.
    Raises SwampError for fewer than one step and for a start that is zero.
    """
    if steps < 1 or not bool(starts.any(1).all()):
        raise SwampError(f"Lanczos takes one step or more ({steps} given), from vectors that are not zero.")
    steps = min(steps, starts.shape[1])
    current = torch.nn.functional.normalize(starts.double(), dim=1)
    basis = current.new_zeros(len(starts), steps, starts.shape[1])
    diagonal, below = current.new_zeros(2, len(starts), steps)
    for step in range(steps):
        basis[:, step] = current
        image = product(current)
        diagonal[:, step] = (current * image).sum(1)
        for _ in range(2):  # What one pass leaves, by cancellation, the second takes.
            known = basis[:, : step + 1]
            image = image - ((known @ image[:, :, None]).mT @ known)[:, 0]
        norm = image.square().sum(1).sqrt()
        scale = torch.maximum(diagonal.abs(), below).amax(1)
        # A remainder that is rounding: the run is at its end, and goes on as zero.
        norm = torch.where(norm > 1e-11 * scale, norm, 0)
        below[:, step] = norm
        current = torch.where(norm[:, None] > 0, image / norm[:, None], 0)
        if not bool(norm.any()):
            break
    return [_ritz(*run) for run in zip(diagonal.cpu(), below.cpu(), strict=True)]


def top(runs: Sequence[Ritz], count: int = 5) -> tuple[Eigenvalue, ...]:
    """The `count` largest eigenvalues, largest first, of the run that is surest of them; fewer if it has fewer."""
    # A run that ended early is exact, but has fewer.
    best = min(runs, key=lambda run: (-len(run.values[-count:]), float(run.residuals[-count:].sum())))
    pairs = zip(best.values[-count:].flip(0), best.residuals[-count:].flip(0), strict=True)
    return tuple(Eigenvalue(float(value), float(residual)) for value, residual in pairs)


def density(runs: Sequence[Ritz], *, points: int = 128, width: float = 0.02) -> Density:
    """Stochastic Lanczos quadrature: the mean over runs of sum_k weight_k * N(t; value_k, s^2) (Ghorbani et al. 2019).

    Starts must be random with equal variance in all directions. width: s as a share of the range of the values.
    """
    values = torch.stack([run.values[[0, -1]] for run in runs])
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(high - low):
        return Density((), ())
    spread = width * ((high - low) or abs(high) or 1.0)
    grid = torch.linspace(low - _REACH * spread, high + _REACH * spread, points, dtype=torch.float64)
    total = torch.zeros_like(grid)
    for run in runs:
        bells = torch.exp(-0.5 * ((grid[:, None] - run.values) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
        total += bells @ run.weights / len(runs)
    return Density(_short(grid), _short(total))


def _ritz(diagonal: Tensor, below: Tensor) -> Ritz:
    if not bool(diagonal.isfinite().all() and below.isfinite().all()):
        unknown = torch.full_like(diagonal, math.nan)
        return Ritz(unknown, unknown, unknown)
    ends = (below == 0).nonzero()
    length = int(ends[0]) + 1 if len(ends) else len(below)
    inner = below[: length - 1]
    matrix = torch.diag(diagonal[:length]) + torch.diag(inner, 1) + torch.diag(inner, -1)
    solve = cast("Callable[[Tensor], tuple[Tensor, Tensor]]", torch.linalg.eigh)  # pyright: ignore[reportUnknownMemberType]
    values, vectors = solve(matrix)
    return Ritz(values, (below[length - 1] * vectors[-1]).abs(), vectors[0] ** 2)


def _short(numbers: Tensor) -> tuple[float, ...]:
    """Nine digits, which a record need not have more of."""
    return tuple(float(f"{float(number):.9g}") for number in numbers)
