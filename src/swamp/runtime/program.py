"""Program: a network as a list of torch operators and named tensors, without its Python classes."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.runtime.operators import arguments_of, resolve_operator

Shape = tuple[int | None, ...]
"""Sizes of a tensor; None for a size that varies, such as the batch size."""

Values = dict[str, Any]
"""Value name -> value, while a program is executed: its tensors, its inputs, and the results computed so far."""

BATCH = "batch"
"""Name of the size that enumerates examples."""
LAYERS = ("linear", "conv1d", "conv2d", "conv3d")
"""Operators with a weight as second argument."""
_PROBES = ((2, 3, 5), (7, 11, 4), (13, 17, 19), (23, 6, 29))
"""Sizes in three probes: a row for each size that varies. No two rows agree, so that different sizes are told apart."""
_MOST_BYTES = 2**30
"""Bytes that one value may take in the first probe, that is for two examples."""


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

    @property
    def op(self) -> str:
        """The operator without its overload."""
        return self.target.partition(".")[0]

    @cached_property
    def reads(self) -> list[str]:
        """Names of all values that the node reads."""
        return referenced(self.args) + referenced(self.kwargs)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Parameter of the operator of torch -> its argument, or its default."""
        return arguments_of(self.target, self.args, self.kwargs)


@dataclass(frozen=True)
class Size:
    """A size of the inputs that varies from call to call."""

    minimum: int
    maximum: int | None
    example: int
    """The size in the inputs with which the network was traced."""


@dataclass(frozen=True)
class Input:
    """An input tensor of the network."""

    name: str
    shape: tuple[int | str, ...]
    """Sizes; one that varies is a name such as "batch", or a multiple such as "2*batch"."""
    dtype: torch.dtype
    low: float = 0.0
    """Least value in the example. With `high`, it keeps random inputs valid: token numbers, indices, masks."""
    high: float = 1.0
    """Largest value in the example."""

    def check(self, value: Any, sizes: dict[str, int]) -> Tensor:
        """Return `value`. Raises SwampError if its type, shape or dtype does not match.

        sizes: sizes that the inputs before it have fixed; those of this input are added.
        """
        if not isinstance(value, Tensor):
            raise SwampError(f"input {self.name!r} must be a tensor, got {type(value).__name__}.")
        known = dict(sizes)
        fits = value.dim() == len(self.shape) and all(
            _fix(stated, size, sizes) for stated, size in zip(self.shape, value.shape, strict=True)
        )
        if not fits or value.dtype != self.dtype:
            expected = ", ".join(str(known.get(size, size) if isinstance(size, str) else size) for size in self.shape)
            raise SwampError(
                f"input {self.name!r} has shape {tuple(value.shape)} and type {value.dtype}; the exported network "
                f"takes ({expected}) of {self.dtype}."
            )
        return value

    def example(self, sizes: Mapping[str, int], seed: int = 0) -> Tensor:
        """A random tensor: normal numbers, or integers between `low` and `high`."""
        shape = [size_in(one, sizes) for one in self.shape]
        random: Any = np.random.default_rng([seed, len(self.name)])
        whole = not (self.dtype.is_floating_point or self.dtype.is_complex)
        numbers = random.integers(int(self.low), int(self.high) + 1, shape) if whole else random.normal(size=shape)
        return torch.as_tensor(numbers).to(self.dtype)


_SIZE = re.compile(r"(?:(\d+)\*)?([^\W\d]\w*)(?: ?\+ ?(\d+))?")


def size_in(stated: int | str, sizes: Mapping[str, int]) -> int:
    """The number that a size such as 3, "batch" or "2*batch + 1" has. Raises ValueError if it is none of these."""
    if isinstance(stated, int):
        return stated
    match = _SIZE.fullmatch(stated)
    if match is None or match[2] not in sizes:
        raise ValueError(f"unknown size {stated!r}")
    return int(match[1] or 1) * sizes[match[2]] + int(match[3] or 0)


def _fix(stated: int | str, size: int, sizes: dict[str, int]) -> bool:
    """Whether `size` is what is stated. A name that has no number yet gets the one that makes it so."""
    match = _SIZE.fullmatch(stated) if isinstance(stated, str) else None
    if match is not None and match[2] not in sizes:
        sizes[match[2]] = max(0, (size - int(match[3] or 0)) // int(match[1] or 1))
    return size_in(stated, sizes) == size


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor that a program computes, before it computes it."""

    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]
    """Its shape in each probe: executions with different sizes of everything that varies."""

    @cached_property
    def shape(self) -> Shape:
        """The shape, with None for sizes that differ between probes."""
        return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*self.shapes, strict=True))


@dataclass(frozen=True, eq=False)
class Program:
    """A network as data: operators in an order that can be executed, and the tensors that they read.

    `trace` makes one from a module, `save` and `read` store it, `DenseNetwork` and `SparseNetwork` execute it.

    Attributes:
        inputs: The input tensors, in the order in which they stand in the arguments.
        nodes: The operators in execution order.
        output: The returned value: tensors in tuples, lists, dicts and `Outputs`, nested.
        tensors: Parameters and buffers under the names that they have in the module.
        arguments: Parameter of the network's forward -> its value: inputs in containers, or a constant.
        sizes: Name -> a size of the inputs that varies.
        state: Name in the state dict of the module -> name in `tensors`.
        in_torch: Names of nodes that torch executes even if a kernel could, because the kernel's result differed.
        provenance: JSON values that describe the origin of the network, such as the configuration of its run.

    Raises:
        ValueError: A name is used twice, or a value is read before it is computed.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    output: Any
    tensors: Mapping[str, Tensor]
    arguments: Mapping[str, Any]
    sizes: Mapping[str, Size] = field(default_factory=dict[str, Size])
    state: Mapping[str, str] = field(default_factory=dict[str, str])
    in_torch: frozenset[str] = frozenset()
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    known: Mapping[str, TensorInfo] = field(default_factory=dict[str, TensorInfo])
    """Values that need not be computed again, because a program with the same ones was rewritten to this one."""

    def __post_init__(self) -> None:
        known = set(self.tensors)
        for one in (*self.inputs, *self.nodes):
            if one.name in known:
                raise ValueError(f"two values have the name {one.name!r}")
            missing = set(one.reads) - known if isinstance(one, Node) else set[str]()
            if missing:
                raise ValueError(f"{one.name!r} reads {sorted(missing)} before it is computed")
            known.add(one.name)
        if not set(referenced(self.output)) <= known:
            raise ValueError("the output is never computed")
        if referenced(self.arguments) != [one.name for one in self.inputs]:
            raise ValueError("the arguments are not the inputs")

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

    @cached_property
    def values(self) -> Mapping[str, TensorInfo]:
        """Value name -> its dtype and shapes, for every tensor whose shape does not depend on numbers in the inputs.

        They are not stored but computed, by executing the program in three probes on torch's meta device, which
        computes shapes and no numbers.

        Raises:
            ValueError: A value would take more than a gigabyte for two examples.
        """
        return _values(self)

    def shape_of(self, name: str) -> Shape | None:
        """The shape of a value, if it is a tensor and known."""
        value = self.values.get(name)
        return None if value is None else value.shape

    def has_constant_parameters(self, layer: Node) -> bool:
        """Whether the weight of a linear or convolutional node is a tensor of the program, and its bias, if any.

        Others are computed, or are inputs.
        """
        weight, bias = (layer.arguments[name] for name in ("weight", "bias"))
        if not isinstance(weight, Ref) or weight.name not in self.tensors:
            return False
        # torch also takes one bias for all outputs, and one for each example.
        rows = self.tensors[weight.name].shape[:1]
        return bias is None or (bias.name in self.tensors and self.tensors[bias.name].shape == rows)

    def bias_of(self, layer: Node) -> Tensor | None:
        """The bias of a linear or convolutional node."""
        ref = layer.arguments["bias"]
        return None if ref is None else self.tensors[ref.name]

    def example_inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs with `batch` examples each."""
        return self.inputs_of_size(BATCH, batch, seed)

    def inputs_of_size(self, name: str, number: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs in which the size `name` is `number`, and the others are those of the example."""
        sizes = {other: number if other == name else size.example for other, size in self.sizes.items()}
        return tuple(one.example(sizes, seed) for one in self.inputs)

    def check_inputs(self, inputs: Sequence[Any]) -> int:
        """Return the number of examples (1 if the network has no batch).

        Raises SwampError if the inputs do not match in number, shape or dtype, or if one requires a gradient.
        """
        if len(inputs) != len(self.inputs):
            raise SwampError(f"the exported network takes {len(self.inputs)} inputs, got {len(inputs)}.")
        sizes: dict[str, int] = {}
        for expected, value in zip(self.inputs, inputs, strict=True):
            if expected.check(value, sizes).requires_grad:
                raise SwampError(
                    "an exported network computes no gradients; call it with inputs that require none (detach())."
                )
        for name, number in sizes.items():
            limits = self.sizes[name]
            if number < limits.minimum or (limits.maximum is not None and number > limits.maximum):
                raise SwampError(
                    f"the exported network takes a size {name!r} of {limits.minimum} or more"
                    f"{f', at most {limits.maximum}' if limits.maximum else ''}, got {number}."
                )
        return sizes.get(BATCH, 1)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The inputs of a call, in order, from its positional and keyword arguments.

        Raises:
            SwampError: An argument is missing, unknown, given twice, nested differently, or not a tensor and another
                value than in the example of the export.
        """
        whole = not kwargs and len(args) == len(self.arguments)
        if whole and all(isinstance(one, Ref) for one in self.arguments.values()):
            return list(args)
        names = list(self.arguments)
        if len(args) > len(names):
            raise SwampError(
                f"the exported network takes {len(names)} arguments ({', '.join(names)}), got {len(args)}."
            )
        given = dict(zip(names, args, strict=False))
        if twice := sorted(set(kwargs) & set(given)):
            raise SwampError(f"argument {twice[0]!r} was given twice, by position and by name.")
        if unknown := sorted(set(kwargs) - set(names)):
            raise SwampError(f"unknown argument {unknown[0]!r}: the exported network takes {', '.join(names)}.")
        given |= kwargs
        found: list[Any] = []
        for name, stated in self.arguments.items():
            if name in given:
                found += _leaves(stated, given[name], name)
            elif referenced(stated):
                needed = [other for other, part in self.arguments.items() if referenced(part)]
                raise SwampError(f"argument {name!r} is missing: the exported network takes {', '.join(needed)}.")
        return found

    def start(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor] | None = None) -> Values:
        """The values that are available before the first node: tensors (default: those of the program) and inputs."""
        named = zip((one.name for one in self.inputs), inputs, strict=True)
        return {**(self.tensors if tensors is None else tensors), **dict(named)}

    def result(self, values: Values) -> Any:
        """The output, after all nodes have added their results to `values`."""
        return map_refs(self.output, lambda ref: values[ref.name])

    def without_unused(self, *, keep_tensors: bool = False) -> "Program":
        """A copy without the nodes and tensors whose values are never read."""
        nodes: list[Node] = []
        needed = set(referenced(self.output))
        for node in reversed(self.nodes):
            if node.name in needed:
                nodes.append(node)
                needed.update(node.reads)
        tensors = {name: tensor for name, tensor in self.tensors.items() if keep_tensors or name in needed}
        return replace(self, nodes=tuple(reversed(nodes)), tensors=tensors)


class Outputs(dict[str, Any]):
    """Named outputs of an exported network, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the network has no output {name!r}; it has {', '.join(self)}") from None


def _leaves(stated: Any, given: Any, place: str) -> list[Any]:
    """The inputs in an argument, matched with the containers that the example had."""
    if isinstance(stated, Ref):
        return [given]
    if isinstance(stated, Mapping):
        parts = cast("Mapping[str, Any]", stated)
        if isinstance(given, Mapping):
            inner = {str(key): part for key, part in cast("Mapping[Any, Any]", given).items()}
        else:
            inner = {key: getattr(given, key) for key in parts if hasattr(given, key)}
        if wrong := sorted(set(inner) ^ set(parts)):
            raise SwampError(
                f"argument {place!r} needs the entries {', '.join(parts)}; {wrong[0]!r} is "
                f"{'missing' if wrong[0] in parts else 'unknown'}."
            )
        return [leaf for key, part in parts.items() for leaf in _leaves(part, inner[key], f"{place}.{key}")]
    if isinstance(stated, list | tuple):
        items, untyped = cast("list[Any]", stated), given
        if not isinstance(given, list | tuple) or len(untyped) != len(items):
            raise SwampError(f"argument {place!r} must be a sequence of {len(items)}, got {type(untyped).__name__}.")
        pairs = zip(items, untyped, strict=True)
        return [leaf for number, (one, value) in enumerate(pairs) for leaf in _leaves(one, value, f"{place}.{number}")]
    if isinstance(given, Tensor) or given != stated:
        raise SwampError(
            f"argument {place!r} was {stated!r} when the network was exported, and cannot be changed; export it again."
        )
    return []


def referenced(argument: Any) -> list[str]:
    """Names of all values that an argument refers to, in order, with repetitions."""
    found: list[str] = []
    map_refs(argument, lambda ref: found.append(ref.name))
    return found


def map_refs(argument: Any, change: Callable[[Any], Any], kind: type = Ref) -> Any:
    """The same structure with every instance of `kind` replaced."""
    if isinstance(argument, kind):
        return change(argument)
    if isinstance(argument, Mapping):
        entries = {key: map_refs(inner, change, kind) for key, inner in cast("Mapping[str, Any]", argument).items()}
        return Outputs(entries) if isinstance(argument, Outputs) else entries
    if isinstance(argument, list | tuple):
        changed = [map_refs(inner, change, kind) for inner in cast("list[Any]", argument)]
        return tuple(changed) if isinstance(argument, tuple) else changed
    return argument


def as_pair(value: Any) -> tuple[int, int]:
    """(rows, columns) of an argument such as a stride: one number, or a list of one or two numbers."""
    numbers = [value] if isinstance(value, int) else list(value)
    return (numbers[0], numbers[-1])


def torch_call(node: Node, device: torch.device | None = None) -> Callable[[Values], None]:
    """A function that executes the node in torch and adds its result to the values.

    device: where operators that make a tensor of nothing, such as arange, put it. Default: the CPU.
    """
    function = resolve_operator(node.target)
    schema: Any = getattr(function, "_schema", None)
    places = device is not None and schema is not None and any(a.name == "device" for a in schema.arguments)
    extra = {"device": device} if places and "device" not in node.kwargs else {}

    def call(values: Values) -> None:
        args, kwargs = map_refs((node.args, node.kwargs), lambda ref: values[ref.name])
        values[node.name] = function(*args, **kwargs, **extra)

    return call


_LIKE_FIRST = ("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_put", "masked_scatter")
"""Operators whose result has the shape of the first argument, also if the shape of another one is not known."""
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _one_step(node: Node) -> Callable[[Values], None]:
    """A function that adds the result of a recurrent layer, computed from one time step and with the shape of all.

    On the meta device, torch executes every step.
    """
    function = resolve_operator(node.target)

    def call(values: Values) -> None:
        data, *args = map_refs(node.args, lambda ref: values[ref.name])
        axis = 1 if args[-1] else 0
        whole, *states = function(data.narrow(axis, 0, 1), *args, **node.kwargs)
        sizes = [data.shape[axis] if place == axis else size for place, size in enumerate(whole.shape)]
        values[node.name] = (whole.new_empty(sizes), *states)

    return call


def _values(program: Program) -> dict[str, TensorInfo]:
    meta = torch.device("meta")
    calls = [(node, _one_step(node) if node.op in _RECURRENT else torch_call(node, meta)) for node in program.nodes]
    tensors = {name: tensor.to(meta) for name, tensor in program.tensors.items()}
    probes: list[Values] = []
    for number in range(len(_PROBES[0])):
        sizes = _probe(program, number)
        inputs = [
            torch.empty([size_in(one, sizes) for one in given.shape], dtype=given.dtype, device=meta)
            for given in program.inputs
        ]
        values = program.start(inputs, tensors)
        for node, call in calls:
            if node.name in program.known:
                known = program.known[node.name]
                values[node.name] = torch.empty(known.shapes[number], dtype=known.dtype, device=meta)
                continue
            if not all(name in values for name in node.reads):
                if node.op in _LIKE_FIRST and isinstance(node.args[0], Ref) and node.args[0].name in values:
                    values[node.name] = values[node.args[0].name]
                continue
            try:
                call(values)
            # torch knows no shape of what depends on numbers (nonzero), and the error can be of any type.
            except Exception:
                continue
            value = values[node.name]
            if number == 0 and isinstance(value, Tensor) and value.numel() * value.itemsize > _MOST_BYTES:
                raise ValueError(f"{node.name} would take {value.numel() * value.itemsize:,} bytes")
        probes.append(values)
    found: dict[str, TensorInfo] = {}
    for name, first in probes[0].items():
        shown = [values.get(name) for values in probes]
        tensors_of_name = [value for value in shown if isinstance(value, Tensor)]
        if len(tensors_of_name) == len(probes) and len({value.dim() for value in tensors_of_name}) == 1:
            found[name] = TensorInfo(first.dtype, tuple(tuple(value.shape) for value in tensors_of_name))
    return found


def _probe(program: Program, number: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for place, (name, limits) in enumerate(program.sizes.items()):
        row = _PROBES[place % len(_PROBES)]
        size = limits.minimum - 1 + row[number] if limits.minimum > 2 else row[number]
        sizes[name] = size if limits.maximum is None else min(size, limits.maximum - number)
    return sizes
