"""Weight space: the parameters of a model as one vector, and planes in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from swamp.analysis.blend import Blend
from swamp.errors import SwampError
from swamp.training import State

_FLAT = 1e-6
"""Of the first direction's length: what may remain of the second one before three points count as on one line."""


class Space:
    """The parameters of a model as vectors in float64, on the CPU; tied parameters count once.

    Buffers are no coordinates: normalisation statistics are made anew wherever a point is evaluated.
    """

    def __init__(self, model: nn.Module) -> None:
        first: dict[int, str] = {}
        self.names: list[str] = []
        self.tied: dict[str, str] = {}
        self.shapes: dict[str, torch.Size] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) in first:
                self.tied[name] = first[id(parameter)]
            else:
                first[id(parameter)] = name
                self.names.append(name)
                self.shapes[name] = parameter.shape

    def vector(self, state: State) -> Tensor:
        """The parameters in `state`, one after the other."""
        return torch.cat([state[name].detach().to("cpu", torch.float64).reshape(-1) for name in self.names])

    def state(self, vector: Tensor) -> dict[str, Tensor]:
        """`vector` by the names of parameters, in float64."""
        parts = torch.split(vector, [self.shapes[name].numel() for name in self.names])
        found = {name: part.reshape(self.shapes[name]) for name, part in zip(self.names, parts, strict=True)}
        return found | {name: found[owner] for name, owner in self.tied.items()}


@dataclass(frozen=True, eq=False)
class Plane:
    """The points origin + x u + y v."""

    space: Space
    origin: State
    """Gives every point its types and buffers."""
    u: Tensor
    v: Tensor

    @classmethod
    def through(cls, model: nn.Module, states: Sequence[State]) -> "Plane":
        """The plane through three points: the origin is the first, u points to the second; u, v are orthonormal.

        Distances in it are those of weight space. Raises SwampError for points on one line, and other than three.
        """
        if len(states) != 3:
            raise SwampError(f"a plane goes through three points, {len(states)} were given.")
        space = Space(model)
        origin, *others = (space.vector(state) for state in states)
        first, second = (other - origin for other in others)
        length = length_of(first)
        u = first / length if length else first
        # Twice: after one subtraction, rounding may leave a trace of u.
        for _ in range(2):
            second = second - (second @ u) * u
        rest = length_of(second)
        if not rest > _FLAT * length > 0:
            raise SwampError("the three models lie on one line of weight space: there is no one plane through them.")
        return cls(space, states[0], u, second / rest)

    def at(self, x: float, y: float) -> Blend:
        """The point with these coordinates."""
        return Blend(self._states, (1.0, x, y))

    @cached_property
    def _states(self) -> tuple[State, ...]:
        return self.origin, self.space.state(self.u), self.space.state(self.v)

    @cached_property
    def _origin(self) -> Tensor:
        return self.space.vector(self.origin)

    @cached_property
    def _basis(self) -> Tensor:
        return torch.stack([self.u, self.v])

    def project(self, state: State) -> tuple[float, float, float]:
        """x and y of the nearest point of the plane (u, v orthonormal), and the distance to it."""
        offset = self.space.vector(state) - self._origin
        found = self._basis @ offset
        return float(found[0]), float(found[1]), length_of(offset - found @ self._basis)


def masked_weights(state: State, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with zeros off the mask: a ticket as the particles of a cycle begin at it."""
    return {
        name: value.masked_fill(~mask[name].to(value.device), 0) if name in mask else value
        for name, value in state.items()
    }


def length_of(vector: Tensor) -> float:
    """Its Euclidean norm."""
    return float(vector.square().sum().sqrt())
