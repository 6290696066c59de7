"""The activation functions of the kernels, and the operators of torch that they compute."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from swamp.runtime.program import Node

NONE, CLAMP, LEAKY, ELU, GELU, GELU_TANH, SILU, SIGMOID, TANH, HARDSIGMOID, HARDSWISH = range(11)
"""The codes in kernels.c."""


@dataclass(frozen=True)
class Activation:
    """A function that a kernel applies to its results before it stores them."""

    code: int = NONE
    low: float = 0.0
    """The lower limit of CLAMP; the factor of LEAKY and ELU."""
    high: float = 0.0
    """The upper limit of CLAMP."""


IDENTITY, RELU = Activation(), Activation(CLAMP, 0.0, math.inf)


def activation_of(node: Node) -> Activation | None:
    """The activation that a node computes; None for other operators."""
    make = _ACTIVATIONS.get(node.op)
    arguments = [*node.args[1:], *node.kwargs.values()]
    if make is None or not all(one is None or isinstance(one, int | float | str) for one in arguments):
        return None
    return make(*node.args[1:], **_renamed(node.kwargs))


def _renamed(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of torch under the names of the functions below."""
    return {{"min": "low", "max": "high"}.get(name, name): value for name, value in kwargs.items()}


def _clamp(low: Any = None, high: Any = None) -> Activation:
    return Activation(CLAMP, -math.inf if low is None else low, math.inf if high is None else high)


def _hardtanh(low: Any = -1.0, high: Any = 1.0) -> Activation:
    return Activation(CLAMP, low, high)


def _leaky_relu(negative_slope: Any = 0.01) -> Activation:
    return Activation(LEAKY, negative_slope)


def _elu(alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Activation | None:
    return Activation(ELU, alpha) if scale == input_scale == 1 else None


def _gelu(approximate: str = "none") -> Activation:
    return Activation(GELU if approximate == "none" else GELU_TANH)


_ACTIVATIONS: dict[str, Callable[..., Activation | None]] = {
    "relu": lambda: RELU,
    "relu6": lambda: Activation(CLAMP, 0.0, 6.0),
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "silu": lambda: Activation(SILU),
    "sigmoid": lambda: Activation(SIGMOID),
    "tanh": lambda: Activation(TANH),
    "hardsigmoid": lambda: Activation(HARDSIGMOID),
    "hardswish": lambda: Activation(HARDSWISH),
}
"""Operator -> the function from its arguments after the first to the activation."""
ACTIVATIONS = tuple(_ACTIVATIONS)
