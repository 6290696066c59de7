"""Vectors in weight space: linear combinations of networks, inner products, distances and angles."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp.errors import SwampError
from swamp.training.average import State, is_inexact
from swamp.training.snapshot import tied_names


@dataclass(frozen=True, eq=False)
class LinearCombination:
    """sum_n coefficient_n w_n, elementwise.

    Pruned weights, 0 in every network, stay exactly 0. A combination of one network with coefficient 1 is exact.
    Integer buffers and all data types are those of the first network. Sums run in float32, or wider if a network is.
    """

    states: Sequence[State]
    """The networks. All but the first may omit tensors to which they contribute nothing, such as normalisation
    statistics of a direction. Combinations of the same sequence object share work; it must not be modified."""
    coefficients: Sequence[float]
    """One per network, any real numbers."""

    @torch.no_grad()
    def weights(self, without: Container[str] = ()) -> dict[str, Tensor]:
        """The combined weights, except the names in `without`."""
        return {name: self._sum(name, tensor) for name, tensor in self.states[0].items() if name not in without}

    def _sum(self, name: str, first: Tensor) -> Tensor:
        if not is_inexact(first):
            return first
        # A network with coefficient 0 is skipped: 0 times infinity or NaN is NaN.
        pairs = zip(self.states, self.coefficients, strict=True)
        terms = [(state[name], coefficient) for state, coefficient in pairs if coefficient and name in state]
        if len(terms) == 1 and terms[0][1] == 1:
            return terms[0][0].to(first)
        total = torch.zeros_like(first, dtype=torch.promote_types(first.dtype, torch.float32))
        for tensor, coefficient in terms:
            wide = torch.promote_types(total.dtype, tensor.dtype)
            total = torch.add(total.to(wide), tensor.to(total.device, wide), alpha=coefficient)
        return total.to(first.dtype)


class ParameterSpace:
    """The parameters of a model as one float64 vector on the CPU. Tied parameters are one coordinate, complex ones two.

    Buffers are not coordinates: normalisation statistics are re-estimated wherever a point is evaluated.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        self.names, self._tied = list(parameters), tied_names(model)
        self._complex = {name for name, parameter in parameters.items() if parameter.is_complex()}
        self.shapes = {
            name: torch.Size([*parameter.shape, 2]) if name in self._complex else parameter.shape
            for name, parameter in parameters.items()
        }

    def vector(self, state: State) -> Tensor:
        """The parameters in `state`, concatenated (n,)."""
        return torch.cat([as_vector(state[name]).to("cpu") for name in self.names])

    def state(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters in `vector` (n,) by name, tied ones under each of their names, in float64 or complex128."""
        parts = torch.split(vector, [self.shapes[name].numel() for name in self.names])
        found = {name: part.reshape(self.shapes[name]) for name, part in zip(self.names, parts, strict=True)}
        found |= {name: torch.view_as_complex(found[name]) for name in self._complex}
        return found | {name: found[owner] for name, owner in self._tied.items()}


def as_vector(tensor: Tensor) -> Tensor:
    """A tensor as a float64 vector (n,) on its device; a complex number has two coordinates."""
    flat = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    return flat.to(torch.float64).reshape(-1)


def euclidean_norm(vector: Tensor) -> float:
    """Euclidean norm |vector|."""
    return float(vector.square().sum().sqrt())


def inner_products(points: Sequence[State], origin: State, names: Iterable[str]) -> Tensor:
    """Inner products (point, point) of `points` minus `origin` over the weights in `names`, float64 on the CPU.

    The difference is formed before squaring, which keeps small distances between points far from zero exact.

    Raises:
        SwampError: a weight is missing from a point or has different shapes.
    """
    total = torch.zeros(len(points), len(points), dtype=torch.float64)
    for name in names:
        _require_same_shape(name, [*points, origin])
        flat = torch.stack([as_vector(point[name]) for point in points])
        flat = flat - as_vector(origin[name]).to(flat)
        total += (flat @ flat.T).cpu()
    return total


def distances(products: Tensor) -> Tensor:
    """Euclidean distances (point, point) from inner products: |a - b|^2 = a'a + b'b - 2 a'b."""
    squares = products.diagonal()
    # Rounding may make the square of a zero distance negative.
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0).sqrt().fill_diagonal_(0)


def angles(products: Tensor) -> Tensor:
    """Angles (point, point) at the origin in degrees, from inner products; NaN for a point at the origin."""
    lengths = products.diagonal().sqrt()
    cosines = (products / (lengths[:, None] * lengths[None, :])).clamp(-1, 1)
    found = cosines.acos().rad2deg()
    return found.masked_fill(torch.eye(len(found), dtype=torch.bool) & ~found.isnan(), 0)


def covariance_spectrum(products: Tensor) -> list[float]:
    """The N - 1 largest eigenvalues of 1/N sum (w_n - mean)(w_n - mean)', in descending order; the others are 0.

    Args:
        products: inner products (N, N) of the points minus their mean.
    """
    # The covariance and the matrix of inner products have the same nonzero eigenvalues.
    values: Tensor = cast(Any, torch.linalg).eigvalsh(products / len(products))
    return to_list(values.clamp(min=0).flip(0)[: len(products) - 1])


def participation_ratio(spectrum: Sequence[float]) -> float:
    """(sum l)^2 / sum l^2: the effective number of directions. NaN if all points are equal.

    Source: Gao et al. 2017, "A theory of multineuronal dimensionality".
    """
    squares = sum(value * value for value in spectrum)
    return sum(spectrum) ** 2 / squares if squares else float("nan")


def to_list(values: Tensor) -> Any:
    """Numbers as lists, nested as the tensor's dimensions."""
    return cast(Any, values).tolist()


def _require_same_shape(name: str, points: Sequence[State]) -> None:
    shapes = {tuple(point[name].shape) if name in point else None for point in points}
    if len(shapes) > 1:
        raise SwampError(
            f"{name!r} has different shapes in the networks to compare: {sorted(map(str, shapes))} (None: missing). "
            "Compare weights of one network."
        )
