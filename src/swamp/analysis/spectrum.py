"""Largest eigenvalues and spectral density of a symmetric matrix, from matrix-vector products."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from swamp.analysis.hessian import Product
from swamp.errors import SwampError

_FEW_STEPS = 12
"""Steps of Lanczos that are always taken: enough for the density of eigenvalues."""
_MAX_NUMBERS = 2**28
"""Numbers in the basis of Lanczos: 2 GB in float64."""
_REACH = 5
"""The grid of a density extends this many widths beyond the outermost eigenvalues."""


@dataclass(frozen=True, eq=False)
class RitzValues:
    """Approximate eigenvalues from one Lanczos run, in ascending order (float64, on the CPU)."""

    values: Tensor
    """Approximate eigenvalues (steps,). A multiple eigenvalue appears once."""
    residuals: Tensor
    """|A y - value * y| for the unit Ritz vector y: the distance to the nearest eigenvalue of A is at most this."""
    weights: Tensor
    """Squared component of the starting vector along each y; they sum to 1."""


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue and the bound of its error."""

    value: float
    residual: float


@dataclass(frozen=True)
class SpectralDensity:
    """Density of eigenvalues on an evenly spaced grid; its integral is 1."""

    at: tuple[float, ...]
    """Grid of eigenvalues."""
    value: tuple[float, ...]
    """Density at each grid point."""


def lanczos(
    product: Product, starts: Tensor, steps: int, enough: Callable[[Sequence[RitzValues]], bool] | None = None
) -> list[RitzValues]:
    """Run Lanczos from several starting vectors at once, with full re-orthogonalisation.

    A run takes one product per step and ends early if its Krylov space is exhausted, at the latest after n steps.
    Memory: run * steps * n numbers in float64; the number of steps is reduced, to 12 at least, to stay below 2 GB.

    Args:
        product: the matrix A.
        starts: starting vectors (run, n). For a block of A (`restricted`), they must lie in the block.
        steps: maximum number of steps.
        enough: called after 12 steps, and then after every second step; True ends all runs.

    Raises:
        SwampError: steps < 1, or a starting vector is zero.

    Examples:
        >>> [run] = lanczos(lambda vectors: vectors * torch.tensor([1.0, 5.0]), torch.ones(1, 2), steps=2)
        >>> [round(value, 6) for value in run.values.tolist()]
        [1.0, 5.0]
    """
    if steps < 1 or not bool(starts.any(1).all()):
        raise SwampError(f"Lanczos needs steps >= 1 (got {steps}) and starting vectors that are not zero.")
    steps = min(steps, starts.shape[1], max(_FEW_STEPS, _MAX_NUMBERS // starts.numel()))
    current = torch.nn.functional.normalize(starts.double(), dim=1)
    basis = current.new_zeros(len(starts), steps, starts.shape[1])
    diagonal, below = current.new_zeros(2, len(starts), steps)
    for step in range(steps):
        basis[:, step] = current
        image = product(current)
        diagonal[:, step] = (current * image).sum(1)
        for _ in range(2):  # The second pass removes what cancellation leaves after the first.
            previous = basis[:, : step + 1]
            image = image - ((previous @ image[:, :, None]).mT @ previous)[:, 0]
        norm = image.square().sum(1).sqrt()
        scale = torch.maximum(diagonal.abs(), below).amax(1)
        # A remainder of the size of rounding errors: the run has ended, and continues with zeros.
        norm = torch.where(norm > 1e-11 * scale, norm, 0)
        below[:, step] = norm
        current = torch.where(norm[:, None] > 0, image / norm[:, None], 0)
        if not bool(norm.any()):
            break
        taken = step + 1
        if enough is not None and taken >= _FEW_STEPS and taken % 2 == 0 and enough(_found(diagonal, below, taken)):
            return _found(diagonal, below, taken)
    return _found(diagonal, below, steps)


def top_eigenvalues(
    runs: Sequence[RitzValues], count: int = 5, tolerance: float | None = None
) -> tuple[Eigenvalue, ...]:
    """The `count` largest eigenvalues, in descending order, from the run with the smallest residuals.

    Args:
        runs: Lanczos runs of one matrix.
        count: number of eigenvalues.
        tolerance: end before the first value with a residual above this fraction of the value, as it and all below it
            may be wrong, or of another rank. None: as they are. The residual bounds the error of a value; a multiple
            eigenvalue, or two that are closer than the tolerance, may appear once.
    """
    # A run that ended early is exact, but has fewer values.
    best = min(runs, key=lambda run: (-len(run.values[-count:]), float(run.residuals[-count:].sum())))
    found: list[Eigenvalue] = []
    for value, residual in zip(best.values[-count:].flip(0), best.residuals[-count:].flip(0), strict=True):
        if tolerance is not None and bool(residual > tolerance * value.abs()):
            break
        found.append(Eigenvalue(float(value), float(residual)))
    return tuple(found)


def spectral_density(runs: Sequence[RitzValues], *, points: int = 128, width: float = 0.02) -> SpectralDensity:
    """Stochastic Lanczos quadrature: the mean over runs of sum_k weight_k * N(t; value_k, s^2) (Ghorbani et al. 2019).

    Args:
        runs: Lanczos runs whose starting vectors are random with equal variance in all directions.
        points: number of grid points.
        width: s as a fraction of the range of the values.

    Returns:
        The density; an empty one if a value is not finite.
    """
    values = torch.stack([run.values[[0, -1]] for run in runs])
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(high - low):
        return SpectralDensity((), ())
    deviation = width * ((high - low) or abs(high) or 1.0)
    grid = torch.linspace(low - _REACH * deviation, high + _REACH * deviation, points, dtype=torch.float64)
    total = torch.zeros_like(grid)
    for run in runs:
        gaussians = torch.exp(-0.5 * ((grid[:, None] - run.values) / deviation) ** 2) / (
            deviation * math.sqrt(2 * math.pi)
        )
        total += gaussians @ run.weights / len(runs)
    return SpectralDensity(_nine_digits(grid), _nine_digits(total))


def _found(diagonal: Tensor, below: Tensor, steps: int) -> list[RitzValues]:
    """The Ritz values of all runs after `steps` steps."""
    runs = zip(diagonal[:, :steps].cpu(), below[:, :steps].cpu(), strict=True)
    return [_ritz_values(*run) for run in runs]


def _ritz_values(diagonal: Tensor, below: Tensor) -> RitzValues:
    if not bool(diagonal.isfinite().all() and below.isfinite().all()):
        unknown = torch.full_like(diagonal, math.nan)
        return RitzValues(unknown, unknown, unknown)
    ends = (below == 0).nonzero()
    length = int(ends[0]) + 1 if len(ends) else len(below)
    inner = below[: length - 1]
    matrix = torch.diag(diagonal[:length]) + torch.diag(inner, 1) + torch.diag(inner, -1)
    solve = cast("Callable[[Tensor], tuple[Tensor, Tensor]]", torch.linalg.eigh)  # pyright: ignore[reportUnknownMemberType]
    values, vectors = solve(matrix)
    return RitzValues(values, (below[length - 1] * vectors[-1]).abs(), vectors[0] ** 2)


def _nine_digits(numbers: Tensor) -> tuple[float, ...]:
    """Rounded to nine significant digits, which keeps records short."""
    return tuple(float(f"{float(number):.9g}") for number in numbers)
