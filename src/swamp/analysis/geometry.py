"""Where points of weight space lie: distances, angles, and the dimension of what they span. Sums run in float64."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.training import State


def products(points: Sequence[State], origin: State, names: Iterable[str]) -> Tensor:
    """Inner products (point, point), float64 on CPU, of points seen from `origin`, over the weights in `names`.

    Distances are taken from these, and differences are formed before anything is squared: particles lie much nearer to
    each other than to zero. Raises SwampError for points of different models.
    """
    total = torch.zeros(len(points), len(points), dtype=torch.float64)
    for name in names:
        _require(name, [*points, origin])
        here = torch.stack([point[name].detach().double().reshape(-1) for point in points])
        here = here - origin[name].detach().to(here).reshape(-1)
        total += (here @ here.T).cpu()
    return total


def distances(products: Tensor) -> Tensor:
    """Euclidean distances (point, point): |a - b|^2 = a'a + b'b - 2 a'b."""
    squares = products.diagonal()
    # Rounding may leave less than nothing between two points that are one.
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0).sqrt().fill_diagonal_(0)


def angles(products: Tensor) -> Tensor:
    """Angles (point, point) in degrees at the origin; NaN for a point that lies there."""
    lengths = products.diagonal().sqrt()
    cosines = (products / (lengths[:, None] * lengths[None, :])).clamp(-1, 1)
    found = cosines.acos().rad2deg()
    return found.masked_fill(torch.eye(len(found), dtype=torch.bool) & ~found.isnan(), 0)


def spectrum(products: Tensor) -> list[float]:
    """Eigenvalues of the points' covariance, 1/N sum (w_n - w_bar)(w_n - w_bar)', the N - 1 that may not be 0.

    products: of the points seen from their mean; largest eigenvalue first.
    """
    # The covariance and the matrix of inner products have the same eigenvalues but for zeros.
    values: Tensor = cast(Any, torch.linalg).eigvalsh(products / len(products))
    return listed(values.clamp(min=0).flip(0)[: len(products) - 1])


def dimension(spectrum: Sequence[float]) -> float:
    """Participation ratio (sum l)^2 / sum l^2: how many directions points spread in. NaN for points that are one.

    Source: Gao et al. 2017, "A theory of multineuronal dimensionality".
    """
    squares = sum(value * value for value in spectrum)
    return sum(spectrum) ** 2 / squares if squares else float("nan")


def listed(values: Tensor) -> Any:
    """Numbers, nested as the tensor is."""
    return cast(Any, values).tolist()


def _require(name: str, points: Sequence[State]) -> None:
    shapes = {tuple(point[name].shape) if name in point else None for point in points}
    if len(shapes) > 1:
        raise SwampError(
            f"{name!r} has the shapes {sorted(map(str, shapes))} in points that are to be compared (None: it is not "
            "there). Compare weights of one network."
        )
