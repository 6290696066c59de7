"""Program: a network as a list of torch operators and named tensors, without its Python classes."""

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
"""Sizes of a tensor; None for a size that may vary, such as the batch size."""

Values = dict[str, Any]
"""Value name -> value, while a program is executed: its tensors, its inputs, and the results computed so far."""

LAYERS = ("linear", "conv1d", "conv2d", "conv3d")
"""Operators with a weight as second argument."""


@dataclass(frozen=True)
class Ref:
    """A reference to a value by name: an input, a tensor, or the result of a node."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operator applied to values that are computed before it."""

    name: str
    """Name of the result."""
    target: str
    """An operator of torch, such as "conv2d.default", or of Python on sizes, such as "operator.mul"."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: str = ""
    """Path of the module that contains the operator."""
    shape: Shape | None = None
    """Shape of the result, if the result is one tensor."""

    @property
    def op(self) -> str:
        """The operator without its overload."""
        return self.target.partition(".")[0]

    @cached_property
    def reads(self) -> list[str]:
        """Names of all values that the node reads."""
        return referenced(self.args) + referenced(self.kwargs)


@dataclass(frozen=True)
class Input:
    """An input tensor of the network."""

    name: str
    shape: Shape
    dtype: torch.dtype

    def check(self, value: Any) -> Tensor:
        """Return `value`. Raises SwampError if its type, shape or dtype does not match."""
        if not isinstance(value, Tensor):
            raise SwampError(f"input {self.name!r} must be a tensor, got {type(value).__name__}.")
        fits = value.dim() == len(self.shape) and all(
            expected in (None, size) for expected, size in zip(self.shape, value.shape, strict=True)
        )
        if not fits or value.dtype != self.dtype:
            expected = ", ".join("batch" if size is None else str(size) for size in self.shape)
            raise SwampError(
                f"input {self.name!r} has shape {tuple(value.shape)} and type {value.dtype}; the exported network "
                f"takes ({expected}) of {self.dtype}."
            )
        return value

    def example(self, batch: int) -> Tensor:
        """A tensor of this shape and dtype with `batch` examples."""
        return example_tensor(self.shape, self.dtype, batch)


@dataclass(frozen=True, eq=False)
class Program:
    """A network as data: operators in an order that can be executed, and the tensors that they read.

    `trace` makes one from a module, `save` and `read` store it, `DenseNetwork` and `SparseNetwork` execute it.

    Attributes:
        inputs: The input tensors in call order.
        nodes: The operators in execution order.
        output: The returned value, or a tuple or list of values.
        tensors: Parameters and buffers under the names that they have in the module.
        provenance: JSON values that describe the origin of the network, such as the configuration of its run.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    output: Any
    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def use_counts(self) -> dict[str, int]:
        """Value name -> number of reads, by nodes and by the output."""
        counts: dict[str, int] = {}
        for name in (*(name for node in self.nodes for name in node.reads), *referenced(self.output)):
            counts[name] = counts.get(name, 0) + 1
        return counts

    @cached_property
    def node_by_name(self) -> dict[str, Node]:
        """Value name -> the node that computes it."""
        return {node.name: node for node in self.nodes}

    def shape_of(self, name: str) -> Shape | None:
        """The shape of a value, if it is one tensor."""
        if name in self.node_by_name:
            return self.node_by_name[name].shape
        if name in self.tensors:
            return tuple(self.tensors[name].shape)
        return next((one.shape for one in self.inputs if one.name == name), None)

    def bias_of(self, layer: Node) -> Tensor | None:
        """The bias of a linear or convolutional node."""
        ref = layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")
        return None if ref is None else self.tensors[ref.name]

    def example_inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Input tensors with `batch` examples each."""
        return tuple(one.example(batch) for one in self.inputs)

    def check_inputs(self, inputs: Sequence[Any]) -> None:
        """Raises SwampError if the inputs do not match in number, shape or dtype, or if one requires a gradient."""
        if len(inputs) != len(self.inputs):
            raise SwampError(f"the exported network takes {len(self.inputs)} inputs, got {len(inputs)}.")
        for expected, value in zip(self.inputs, inputs, strict=True):
            if expected.check(value).requires_grad:
                raise SwampError(
                    "an exported network computes no gradients; call it with inputs that require none (detach())."
                )

    def start(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor] | None = None) -> Values:
        """The values that are available before the first node: tensors (default: those of the program) and inputs."""
        named = zip((one.name for one in self.inputs), inputs, strict=True)
        return {**(self.tensors if tensors is None else tensors), **dict(named)}

    def result(self, values: Values) -> Any:
        """The output, after all nodes have added their results to `values`."""
        return map_refs(self.output, lambda ref: values[ref.name])

    def without_unused(self) -> "Program":
        """A copy without the nodes and tensors whose values are never read."""
        nodes: list[Node] = []
        needed = set(referenced(self.output))
        for node in reversed(self.nodes):
            if node.name in needed:
                nodes.append(node)
                needed.update(node.reads)
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in needed}
        return replace(self, nodes=tuple(reversed(nodes)), tensors=tensors)


def referenced(argument: Any) -> list[str]:
    """Names of all values that an argument refers to, in order, with repetitions."""
    if isinstance(argument, Ref):
        return [argument.name]
    if isinstance(argument, Mapping):
        return [name for inner in cast("Mapping[str, Any]", argument).values() for name in referenced(inner)]
    if isinstance(argument, list | tuple):
        return [name for inner in cast("list[Any]", argument) for name in referenced(inner)]
    return []


def map_refs(argument: Any, change: Callable[[Any], Any], kind: type = Ref) -> Any:
    """The same structure with every instance of `kind` replaced."""
    if isinstance(argument, kind):
        return change(argument)
    if isinstance(argument, Mapping):
        return {key: map_refs(inner, change, kind) for key, inner in cast("Mapping[str, Any]", argument).items()}
    if isinstance(argument, list | tuple):
        changed = [map_refs(inner, change, kind) for inner in cast("list[Any]", argument)]
        return tuple(changed) if isinstance(argument, tuple) else changed
    return argument


def as_pair(value: Any) -> tuple[int, int]:
    """(rows, columns) of an argument such as a stride: one number, or a list of one or two numbers."""
    numbers = [value] if isinstance(value, int) else list(value)
    return (numbers[0], numbers[-1])


_PYTHON: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name) for name in ("mul", "add", "sub", "floordiv", "mod", "neg", "getitem")
}


def resolve_operator(target: str) -> Callable[..., Any]:
    """The function with this name. Raises SwampError unless it is a pure function of tensors.

    The check is needed because the name may come from a file, which must not be able to call other functions.
    """
    name, _, overload = target.partition(".")
    if name == "operator" and overload in _PYTHON:
        return _PYTHON[overload]
    packet = getattr(torch.ops.aten, name, None)
    function: Any = getattr(packet, overload, None) if packet is not None and overload else None
    schema: Any = getattr(function, "_schema", None)
    if schema is None or schema.is_mutable or not any("Tensor" in str(a.type) for a in schema.arguments):
        raise SwampError(
            f"the program asks for the operation {target!r}, which this torch ({torch.__version__}) does not have as a "
            "function of tensors. Export again, or update torch."
        )
    return function


def torch_call(node: Node) -> Callable[[Values], None]:
    """A function that executes the node in torch and adds its result to the values."""
    function = resolve_operator(node.target)

    def call(values: Values) -> None:
        args, kwargs = map_refs((node.args, node.kwargs), lambda ref: values[ref.name])
        values[node.name] = function(*args, **kwargs)

    return call


def example_tensor(shape: Sequence[int | None], dtype: torch.dtype, batch: int) -> Tensor:
    """A tensor for timing, with `batch` for each size that may vary. Its values do not depend on a random generator."""
    sizes = [batch if size is None else size for size in shape]
    if not dtype.is_floating_point:
        return torch.zeros(sizes, dtype=dtype)
    count = int(np.prod(sizes))
    return (torch.arange(count, dtype=torch.float32) % 7 - 3).reshape(sizes).to(dtype)


class DenseNetwork(nn.Module):
    """A program that torch executes operator by operator, zeros included.

    Args:
        program: The network. Its tensors become buffers of the module.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self._attributes = {name: name.replace(".", "__") for name in program.tensors}
        for name, tensor in program.tensors.items():
            self.register_buffer(self._attributes[name], tensor)
        self._calls = [(node, torch_call(node)) for node in program.nodes]
        self._last_reads = _last_reads(program)

    def forward(self, *inputs: Tensor) -> Any:
        """The output of the network."""
        return self._execute(inputs, lambda node, value: None)

    def _execute(self, inputs: Sequence[Tensor], on_result: Callable[[Node, Any], None]) -> Any:
        tensors = {name: getattr(self, attribute) for name, attribute in self._attributes.items()}
        values = self.program.start(inputs, tensors)
        for node, call in self._calls:
            call(values)
            on_result(node, values[node.name])
            for name in self._last_reads.get(node.name, ()):
                del values[name]
        return self.program.result(values)

    @torch.no_grad()
    def check_shapes(self) -> None:
        """Execute every node and compare its result with the shape that the program states for it.

        Kernels write as many numbers as the stated shape has, and the shape may come from a damaged file. Each node is
        executed with two batch sizes, because the size None of a shape stands for the batch size.

        Raises:
            ValueError: A shape differs. An operator of torch may raise other errors.
        """
        for batch in (2, 3):

            def compare(node: Node, value: Any, batch: int = batch) -> None:
                stated = node.shape and tuple(batch if size is None else size for size in node.shape)
                if stated is not None and not (isinstance(value, Tensor) and tuple(value.shape) == stated):
                    raise ValueError(f"{node.name} does not have the stated shape {node.shape}")

            shapes = ([batch if size is None else size for size in one.shape] for one in self.program.inputs)
            inputs = [
                torch.zeros(shape, dtype=one.dtype) for shape, one in zip(shapes, self.program.inputs, strict=True)
            ]
            self._execute(inputs, compare)


def _last_reads(program: Program) -> dict[str, list[str]]:
    """Node name -> the values whose last reader is that node."""
    last: dict[str, str] = {}
    for node in program.nodes:
        last.update(dict.fromkeys([node.name, *node.reads], node.name))
    for name in (*referenced(program.output), *program.tensors):
        last.pop(name, None)
    finished: dict[str, list[str]] = {}
    for name, node in last.items():
        finished.setdefault(node, []).append(name)
    return finished
