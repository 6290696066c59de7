"""The activation functions of the kernels, and the operators of torch that they compute."""

import math
from collections.abc import Callable
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


IDENTITY = Activation()


def activation_of(node: Node) -> Activation | None:
    """The activation that a node computes; None for other operators."""
    make = _ACTIVATIONS.get(node.op)
    arguments = [] if make is None else list(node.arguments.values())[1:]
    if make is None or not all(one is None or isinstance(one, int | float | str) for one in arguments):
        return None
    return make(*arguments)


def _clamp(low: Any, high: Any = None) -> Activation:
    return Activation(CLAMP, -math.inf if low is None else low, math.inf if high is None else high)


def _leaky_relu(negative_slope: Any) -> Activation:
    return Activation(LEAKY, negative_slope)


def _elu(alpha: Any, scale: Any, input_scale: Any) -> Activation | None:
    return Activation(ELU, alpha) if scale == input_scale == 1 else None


def _gelu(approximate: str) -> Activation:
    return Activation(GELU if approximate == "none" else GELU_TANH)


_ACTIVATIONS: dict[str, Callable[..., Activation | None]] = {
    "relu": lambda: Activation(CLAMP, 0.0, math.inf),
    "relu6": lambda: Activation(CLAMP, 0.0, 6.0),
    "hardtanh": _clamp,
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
