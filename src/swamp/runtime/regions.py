"""Fused regions: the parts of a program that the kernels execute in one call, and the fallback ops between them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from swamp.runtime.activations import ACTIVATIONS, CLAMP, activation_of
from swamp.runtime.program import LAYERS, Node, Program, Ref, Shape, as_pair, referenced

Extent = tuple[int, ...]
"""Size of one example of a value: (channels, rows, columns) of an image, or (features,) of a vector."""

CONVOLUTIONS = ("conv1d", "conv2d")
_OF_SIZES = ("operator.", "math.", "torch.", "sym_size.", "sym_stride.", "sym_numel.")
"""Beginnings of operators that compute sizes and no tensors."""
_BINARY = ("add", "mul", "div")
_ELEMENTWISE = (*ACTIVATIONS, *_BINARY, "batch_norm")


@dataclass(frozen=True, eq=False)
class FusedRegion:
    """Nodes that the kernels execute in one call."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    extents: dict[str, Extent]
    """Value name -> extent, for every value that the nodes read or compute."""
    trailing: dict[str, tuple[int, ...]]
    """Output name -> its dimensions after the leading ones: (channels, columns) for a signal, otherwise its extent."""


def partition(program: Program, dense: Iterable[str] = ()) -> list[FusedRegion | Node]:
    """Split a program into fused regions and fallback ops (single nodes that torch executes), in execution order.

    A node is executed as soon as its arguments are available, which makes regions longer.

    Args:
        program: The network.
        dense: Names of layers that torch executes although the kernels could.
    """
    excluded = {*dense, *program.in_torch}
    ready = {one.name for one in program.inputs} | set(program.tensors)
    remaining = list(program.nodes)
    parts: list[FusedRegion | Node] = []
    while remaining:
        before = len(remaining)
        remaining, fallback = _take(remaining, ready, partial(_is_fallback, program, excluded))
        parts += fallback
        extents: dict[str, Extent] = {}
        remaining, fused = _take(remaining, ready, partial(_joins, program, excluded, extents))
        if any(node.op in LAYERS for node in fused):
            parts.append(_region(program, fused, extents))
        else:
            parts += fused
        if len(remaining) == before:
            # No region can start with the next node: torch executes it.
            excluded.add(next(node.name for node in remaining if set(node.reads) <= ready))
    return parts


def fallback_ops(program: Program) -> list[str]:
    """Operators that torch executes between the kernels, as "module: operator"."""
    parts = [part for part in partition(program) if isinstance(part, Node) and not part.target.startswith(_OF_SIZES)]
    return [f"{node.module or 'the model'}: {node.target}" for node in parts]


def _is_fallback(program: Program, excluded: set[str], node: Node) -> bool:
    return node.name in excluded or _extents(program, node, {}) is None


def _joins(program: Program, excluded: set[str], extents: dict[str, Extent], node: Node) -> bool:
    """Whether the node can join a region with these extents; if so, add the extents of the node's values."""
    found = None if node.name in excluded else _extents(program, node, extents)
    if found is None or any(extents.get(name, extent) != extent for name, extent in found.items()):
        return False
    # All values of a region have the same leading dimensions, because a kernel call has one number of examples.
    known = islice(extents.items(), 1)
    if len({_lead(program, name, extent) for name, extent in (*known, *found.items())}) > 1:
        return False
    extents.update(found)
    return True


def _take(nodes: list[Node], ready: set[str], fits: Callable[[Node], bool]) -> tuple[list[Node], list[Node]]:
    """Split nodes into (remaining, taken): a node is taken if it fits and all its arguments are in `ready`.

    The results of taken nodes are added to `ready`.
    """
    remaining: list[Node] = []
    taken: list[Node] = []
    for node in nodes:
        if ready.issuperset(node.reads) and fits(node):
            taken.append(node)
            ready.add(node.name)
        else:
            remaining.append(node)
    return remaining, taken


def _region(program: Program, nodes: list[Node], extents: dict[str, Extent]) -> FusedRegion:
    names = {node.name for node in nodes}
    inputs = [name for node in nodes for name in activations(node) if name not in names]
    read_elsewhere = {name for node in program.nodes if node.name not in names for name in node.reads}
    read_elsewhere.update(referenced(program.output))
    outputs = [node.name for node in nodes if node.name in read_elsewhere]
    trailing = {name: program.values[name].shapes[0][1 if len(extents[name]) == 3 else -1 :] for name in outputs}
    return FusedRegion(tuple(nodes), tuple(dict.fromkeys(inputs)), tuple(outputs), extents, trailing)


def activations(node: Node) -> list[str]:
    """Names of the values that a node reads, except constants: its weights, biases, factors."""
    arguments = node.args[0] if node.op == "cat" else node.args[: 2 if node.op in _BINARY else 1]
    return [ref.name for ref in arguments if isinstance(ref, Ref)]


def channel_constant(program: Program, node: Node, extent: Extent) -> NDArray[Any] | None:
    """The constant by which a node multiplies each channel, or that it adds; None if the operand is no constant."""
    operand = node.args[1]
    if not isinstance(operand, int | float):
        return None
    constant = np.full(extent[0], operand, np.float64)
    return 1 / constant if node.op == "div" else constant


def _lead(program: Program, name: str, extent: Extent) -> tuple[tuple[int, ...], ...]:
    """The leading dimensions of a value, which enumerate examples, in each probe of the program."""
    return tuple(shape[:1] if len(extent) == 3 else shape[:-1] for shape in program.values[name].shapes)


def _extents(program: Program, node: Node, extents: dict[str, Extent]) -> dict[str, Extent] | None:
    """The extents of the values that a node reads and of its result; None if no kernel can execute the node.

    extents: extents that other nodes of the region have fixed for their values.
    """
    if node.op == "cat":
        return _cat(program, node)
    spread = spread_operand(program, node)
    if spread is not None:
        images = {name: _image(program.shape_of(name)) for name in (*activations(node), node.name)}
        return {name: image for name, image in images.items() if image} if _is_float32(program, node) else None
    found = _input_and_result(program, node, extents)
    return None if found is None else {**dict.fromkeys(activations(node), found[0]), node.name: found[1]}


def _input_and_result(program: Program, node: Node, extents: dict[str, Extent]) -> tuple[Extent, Extent] | None:
    check = _CHECKS.get(node.op)
    shape = program.shape_of(node.args[0].name) if node.args and isinstance(node.args[0], Ref) else None
    if check is None or shape is None or program.shape_of(node.name) is None or not _is_float32(program, node):
        return None
    if node.op in _ELEMENTWISE:
        # Elementwise: extent of input and result are equal. Four dimensions are an image unless it is fixed otherwise.
        fixed = [extents[name] for name in activations(node) if name in extents]
        extent = fixed[0] if fixed else _image(shape) if len(shape) == 4 else _vector(shape)
        return (extent, extent) if extent is not None and check(program, node, extent) else None
    return check(program, node, shape)


def _is_float32(program: Program, node: Node) -> bool:
    """Whether the result and all tensors that the node reads are float32."""
    values = [program.values.get(name) for name in (node.name, *node.reads)]
    return all(value is not None and value.dtype == torch.float32 for value in values)


def _image(shape: Shape | None) -> Extent | None:
    """The extent of a batch of images or signals; a signal is an image of one row. None if it is empty or varies."""
    if shape is None or len(shape) not in (3, 4) or not all(shape[1:]):
        return None
    return (shape[1], 1, shape[2]) if len(shape) == 3 else tuple(shape[1:])  # pyright: ignore


def _vector(shape: Shape) -> Extent | None:
    return (shape[-1],) if len(shape) >= 2 and shape[-1] else None


# Each check returns (extent of the inputs, extent of the result), or None if no kernel can execute the node.


def _linear(program: Program, node: Node, shape: Shape) -> tuple[Extent, Extent] | None:
    before, after = _vector(shape), _vector(program.shape_of(node.name) or ())
    return (before, after) if before and after and _has_weight(program, node) else None


def _convolution(program: Program, node: Node, shape: Shape) -> tuple[Extent, Extent] | None:
    before, after = _image(shape), _image(program.shape_of(node.name))
    # An image without a batch dimension has fewer dimensions.
    fits = (
        _has_weight(program, node)
        and not isinstance(node.arguments["padding"], str)
        and len(shape) == int(node.op[4]) + 2
    )
    return (before, after) if before and after and fits else None


def _has_weight(program: Program, node: Node) -> bool:
    # torch states shapes for layers whose weight has more dimensions, and fails when it executes them.
    dimensions = 2 if node.op == "linear" else int(node.op[4]) + 2
    return program.has_constant_parameters(node) and program.tensors[node.args[1].name].dim() == dimensions


def _pool(program: Program, node: Node, shape: Shape) -> tuple[Extent, Extent] | None:
    before, after = _image(shape), _image(program.shape_of(node.name))
    if not before or not after or len(shape) != 4:
        return None
    given = node.arguments
    padded = any(as_pair(given["padding"]))
    if node.op == "max_pool2d":
        # The kernels pad with zeros instead of -inf: equal only if no input is negative, that is after a ReLU.
        producer = program.node_by_name.get(node.args[0].name)
        act = None if producer is None else activation_of(producer)
        positive = act is not None and act.code == CLAMP and act.low >= 0
        fits = not padded or positive
    else:
        fits = (given["count_include_pad"] or not padded) and given["divisor_override"] is None
    return (before, after) if fits and not given["ceil_mode"] else None


def _adaptive(program: Program, node: Node, shape: Shape) -> tuple[Extent, Extent] | None:
    before, after = _image(shape), _image(program.shape_of(node.name))
    return (before, after) if before and after and after[1:] == (1, 1) and len(shape) == 4 else None


def _mean(program: Program, node: Node, shape: Shape) -> tuple[Extent, Extent] | None:
    before = _image(shape)
    given = node.arguments
    stated = given.get("dim")  # x.mean() has none
    axes = sorted(axis % len(shape) for axis in cast("list[int]", stated)) if isinstance(stated, list) else []
    if not before or axes != list(range(2, len(shape))) or given["dtype"] is not None:
        return None
    return before, (before[0], 1, 1) if given["keepdim"] else (before[0],)


def _flatten(program: Program, node: Node, shape: Shape) -> tuple[Extent, Extent] | None:
    before = _image(shape)
    whole = tuple(node.args[1:]) in ((1,), (1, -1), (1, len(shape) - 1))
    return (before, (math.prod(before),)) if before and whole else None


def _slice(program: Program, node: Node, shape: Shape) -> tuple[Extent, Extent] | None:
    axis, start, end, stride = (node.arguments[name] for name in ("dim", "start", "end", "step"))
    result = program.shape_of(node.name) or ()
    of_channels = _of_channels(shape, axis)
    if of_channels is not None:
        before, after = of_channels(shape), of_channels(result)
        constant = all(bound is None or isinstance(bound, int) for bound in (start, end))
        return (before, after) if before and after and constant and stride == 1 else None
    before, after = _image(shape), _image(result)
    if not before or not after or len(shape) != 4 or axis not in (2, 3) or start not in (0, None):
        return None
    return (before, after) if isinstance(stride, int) and after[axis - 1] == -(-before[axis - 1] // stride) else None


def _of_channels(shape: Shape, axis: int) -> Callable[[Shape], Extent | None] | None:
    """What gives the extent of values whose dimension `axis` holds channels or features; None for other dimensions."""
    if axis in (-1, len(shape) - 1) and len(shape) != 4:
        return _vector
    return _image if axis == 1 and len(shape) == 4 else None


def _cat(program: Program, node: Node) -> dict[str, Extent] | None:
    """The extents of a concatenation of channels or features."""
    shapes = [program.shape_of(ref.name) for ref in node.args[0]]
    result = program.shape_of(node.name)
    constants = any(ref.name in program.tensors for ref in node.args[0])
    if result is None or None in shapes or constants or node.kwargs or not _is_float32(program, node):
        return None
    of_channels = _of_channels(result, node.args[1] if len(node.args) > 1 else 0)
    if of_channels is None:
        return None
    names = [*activations(node), node.name]
    found = {name: of_channels(shape) for name, shape in zip(names, [*shapes, result], strict=True) if shape}
    extents = {name: extent for name, extent in found.items() if extent}
    return extents if len(extents) == len(set(names)) else None


def _pad(program: Program, node: Node, shape: Shape) -> tuple[Extent, Extent] | None:
    before, after = _image(shape), _image(program.shape_of(node.name))
    amounts = list(node.args[1])
    zeros = node.args[2:] in ((), ("constant",), ("constant", None), ("constant", 0.0), ("constant", 0))
    only_channels = len(amounts) == 6 and not any(amounts[:4]) and min(amounts[4:]) >= 0
    fits = len(shape) == 4 and zeros and only_channels and not node.kwargs
    return (before, after) if before and after and fits else None


def _activation(program: Program, node: Node, extent: Extent) -> bool:
    return activation_of(node) is not None


def _binary(program: Program, node: Node, extent: Extent) -> bool:
    if len(node.args) != 2 or node.kwargs:
        return False
    if channel_constant(program, node, extent) is not None:
        return True
    shapes = [program.shape_of(ref.name) if isinstance(ref, Ref) else None for ref in node.args]
    return node.op != "div" and shapes[0] is not None and shapes[0] == shapes[1] and node.args[0] != node.args[1]


def spread_operand(program: Program, node: Node) -> str | None:
    """The operand of a sum or product with one number for each channel of an image that is the other operand."""
    names = activations(node)
    if node.op not in ("add", "mul") or len(names) != 2 or len(node.args) != 2 or node.kwargs:
        return None
    images = [_image(program.shape_of(name)) if len(program.shape_of(name) or ()) == 4 else None for name in names]
    if node.name in names or not all(images) or images[0] == images[1] or set(names) & set(program.tensors):
        return None
    of_channel = [
        image == (other[0], 1, 1) for image, other in zip(images, images[::-1], strict=True) if image and other
    ]
    return names[of_channel.index(True)] if any(of_channel) else None


def _layer_norm(program: Program, node: Node, shape: Shape) -> tuple[Extent, Extent] | None:
    extent = _vector(shape)
    tables = [node.arguments.get(name) for name in ("weight", "bias")]
    constant = all(ref is None or ref.name in program.tensors for ref in tables)
    return (extent, extent) if extent and list(node.args[1]) == [shape[-1]] and constant and not node.kwargs else None


def _norm(program: Program, node: Node, extent: Extent) -> bool:
    constant = all(ref is None or ref.name in program.tensors for ref in node.args[1:5])
    training, has_statistics = node.args[5], node.args[3] is not None
    fits = len(program.shape_of(node.args[0].name) or ()) == 2 or len(extent) == 3
    return constant and not training and has_statistics and fits


_CHECKS: dict[str, Any] = {
    "linear": _linear,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    "flatten": _flatten,
    "slice": _slice,
    "pad": _pad,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "batch_norm": _norm,
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(ACTIVATIONS, _activation),
}
