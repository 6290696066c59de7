"""Program: a network as a list of operations and named tensors, without its Python classes."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from swamp.errors import SwampError

Shape = tuple[int | None, ...]
"""Sizes; None where the size may be any, as that of the batch."""


@dataclass(frozen=True)
class Ref:
    """The value of that name: an input, a tensor, or what a step gives."""

    name: str


@dataclass(frozen=True)
class Step:
    """One operation on values that are there already."""

    name: str
    """Of the value it gives."""
    target: str
    """An operator of torch, as "conv2d.default", or of Python on sizes, as "operator.mul"."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: str = ""
    """Path of the module that it comes from."""
    shape: Shape | None = None
    """Of its value, if that is one tensor."""

    @property
    def op(self) -> str:
        """The operator without its overload."""
        return self.target.partition(".")[0]


@dataclass(frozen=True)
class Input:
    """A tensor that the network is called with."""

    name: str
    shape: Shape
    dtype: torch.dtype

    def check(self, given: Any) -> Tensor:
        """The tensor. Raises SwampError for one of another shape or type."""
        if not isinstance(given, Tensor):
            raise SwampError(f"input {self.name!r} must be a tensor, got {type(given).__name__}.")
        fits = given.dim() == len(self.shape) and all(
            want in (None, have) for want, have in zip(self.shape, given.shape, strict=True)
        )
        if not fits or given.dtype != self.dtype:
            expected = ", ".join("batch" if size is None else str(size) for size in self.shape)
            raise SwampError(
                f"input {self.name!r} has shape {tuple(given.shape)} and type {given.dtype}; the exported network "
                f"takes ({expected}) of {self.dtype}."
            )
        return given


@dataclass(frozen=True, eq=False)
class Program:
    """Inputs, steps in an order that can be run, and the value or structure of values that is the output."""

    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    output: Any
    tensors: Mapping[str, Tensor]
    """Parameters and buffers, by the names they have in the module; folded ones have their new values."""
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Where it comes from, as JSON knows it."""

    @cached_property
    def uses(self) -> dict[str, int]:
        """How often each value is read, by steps or as output."""
        counts: dict[str, int] = {}
        for part in (*((step.args, step.kwargs) for step in self.steps), self.output):
            for name in refs(part):
                counts[name] = counts.get(name, 0) + 1
        return counts

    @cached_property
    def step_of(self) -> dict[str, Step]:
        """Value name -> the step that gives it."""
        return {step.name: step for step in self.steps}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors that linear and convolutional steps read as weights."""
        names = [step.args[1].name for step in self.steps if step.op in LAYERS and isinstance(step.args[1], Ref)]
        return {name: self.tensors[name] for name in dict.fromkeys(names) if name in self.tensors}

    def shape_of(self, name: str) -> Shape | None:
        """The shape of a value."""
        if name in self.step_of:
            return self.step_of[name].shape
        if name in self.tensors:
            return tuple(self.tensors[name].shape)
        return next((given.shape for given in self.inputs if given.name == name), None)

    def check(self, inputs: Sequence[Any]) -> None:
        """Raise SwampError for inputs that it cannot be called with, and where gradients are asked for."""
        if len(inputs) != len(self.inputs):
            raise SwampError(f"the exported network takes {len(self.inputs)} inputs, got {len(inputs)}.")
        for given, tensor in zip(self.inputs, inputs, strict=True):
            if given.check(tensor).requires_grad:
                raise SwampError(
                    "the exported network has no gradients; call it with inputs that need none (detach())."
                )

    def pruned_of_dead(self) -> "Program":
        """Without steps and tensors that nothing reads."""
        steps: list[Step] = []
        needed = set(refs(self.output))
        for step in reversed(self.steps):
            if step.name in needed:
                steps.append(step)
                needed.update(refs((step.args, step.kwargs)))
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in needed}
        return replace(self, steps=tuple(reversed(steps)), tensors=tensors)


LAYERS = ("linear", "conv1d", "conv2d", "conv3d")


def refs(value: Any) -> list[str]:
    """Names of all values that an argument speaks of."""
    if isinstance(value, Ref):
        return [value.name]
    if isinstance(value, Mapping):
        return [name for inner in cast("Mapping[str, Any]", value).values() for name in refs(inner)]
    if isinstance(value, list | tuple):
        return [name for inner in cast("list[Any]", value) for name in refs(inner)]
    return []


def mapped(value: Any, change: Callable[[Ref], Any]) -> Any:
    """The same structure with every Ref replaced."""
    if isinstance(value, Ref):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(inner, change) for key, inner in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        changed = [mapped(inner, change) for inner in cast("list[Any]", value)]
        return tuple(changed) if isinstance(value, tuple) else changed
    return value


_PYTHON: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name) for name in ("mul", "add", "sub", "floordiv", "mod", "neg", "getitem")
}


def operation(target: str) -> Callable[..., Any]:
    """What a step does. Raises SwampError for anything but a function of tensors: a file may not ask for more."""
    name, _, overload = target.partition(".")
    if name == "operator" and overload in _PYTHON:
        return _PYTHON[overload]
    packet = getattr(torch.ops.aten, name, None)
    found: Any = getattr(packet, overload, None) if packet is not None and overload else None
    schema: Any = getattr(found, "_schema", None)
    if schema is None or schema.is_mutable or not any("Tensor" in str(a.type) for a in schema.arguments):
        raise SwampError(
            f"the program asks for the operation {target!r}, which this torch ({torch.__version__}) does not have as a "
            "function of tensors. Export again, or update torch."
        )
    return found


class Dense(nn.Module):
    """A program run by torch, operation by operation; its parameters are the program's tensors."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self._names = {name: name.replace(".", "__") for name in program.tensors}
        for name, tensor in program.tensors.items():
            self.register_buffer(self._names[name], tensor)
        self._calls = [(step, operation(step.target)) for step in program.steps]
        self._last = _last_uses(program)

    def forward(self, *inputs: Tensor) -> Any:
        """The network's output."""
        return self._run(inputs, lambda step, value: None)

    def _run(self, inputs: Sequence[Tensor], tell: Callable[[Step, Any], None]) -> Any:
        values: dict[str, Any] = {name: getattr(self, attribute) for name, attribute in self._names.items()}
        for given, tensor in zip(self.program.inputs, inputs, strict=True):
            values[given.name] = tensor
        for step, call in self._calls:
            args, kwargs = mapped((step.args, step.kwargs), lambda ref: values[ref.name])
            values[step.name] = call(*args, **kwargs)
            tell(step, values[step.name])
            for name in self._last.get(step.name, ()):
                del values[name]
        return mapped(self.program.output, lambda ref: values[ref.name])

    @torch.no_grad()
    def check_shapes(self) -> None:
        """Raise ValueError, or whatever torch does, unless every step gives a value of the shape that it states.

        Kernels are built for these shapes and write that far: a file must not say another than it has. Tried on two
        sizes, as None stands for that of the batch.
        """
        for size in (2, 3):

            def compare(step: Step, value: Any, size: int = size) -> None:
                stated = step.shape and tuple(size if length is None else length for length in step.shape)
                if stated is not None and not (isinstance(value, Tensor) and tuple(value.shape) == stated):
                    raise ValueError(f"{step.name} has not the shape {step.shape}")

            sizes = ([size if length is None else length for length in given.shape] for given in self.program.inputs)
            inputs = [
                torch.zeros(own, dtype=given.dtype) for own, given in zip(sizes, self.program.inputs, strict=True)
            ]
            self._run(inputs, compare)


def _last_uses(program: Program) -> dict[str, list[str]]:
    """Step name -> values that nothing reads after it."""
    last: dict[str, str] = {}
    for step in program.steps:
        last.update(dict.fromkeys([step.name, *refs((step.args, step.kwargs))], step.name))
    for name in (*refs(program.output), *program.tensors):
        last.pop(name, None)
    done: dict[str, list[str]] = {}
    for name, step in last.items():
        done.setdefault(step, []).append(name)
    return done


def pattern(shape: Sequence[int | None], dtype: torch.dtype, size: int) -> Tensor:
    """A tensor to time with: numbers of a fixed pattern, since the global generator is not ours."""
    sizes = [size if length is None else length for length in shape]
    if not dtype.is_floating_point:
        return torch.zeros(sizes, dtype=dtype)
    count = int(np.prod(sizes))
    return (torch.arange(count, dtype=torch.float32) % 7 - 3).reshape(sizes).to(dtype)
