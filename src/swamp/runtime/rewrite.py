"""Rewrites that do not change the outputs: fold BatchNorm, remove identities, remove dead units."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from swamp.runtime.activations import activation_of
from swamp.runtime.operators import resolve_operator
from swamp.runtime.program import Node, Program, Ref, as_pair, map_refs, torch_call


def _rewritten(program: Program, change: Callable[[Node], Node | Ref]) -> Program:
    """Replace every node by the result of `change`: another node, or a reference to an existing value."""
    replaced: dict[str, Ref] = {}

    def follow(ref: Ref) -> Ref:
        return replaced.get(ref.name, ref)

    nodes: list[Node] = []
    for node in program.nodes:
        changed = change(replace(node, args=map_refs(node.args, follow), kwargs=map_refs(node.kwargs, follow)))
        if isinstance(changed, Ref):
            replaced[node.name] = changed
        else:
            nodes.append(changed)
    return replace(program, nodes=tuple(nodes), output=map_refs(program.output, follow), known=program.values)


def fold_batchnorm(program: Program) -> Program:
    """Return a program for inference in which BatchNorm is part of the layer before it.

    A layer absorbs its BatchNorm only if no other operator reads the layer. A mean over a flattened image becomes a
    mean over rows and columns, a product with a constant matrix a linear layer, and a division by the root mean square
    an RMSNorm, which the kernels can execute.
    Values that do not depend on the inputs are computed now, and those that are never read are removed.

    Args:
        program: What `trace` or `read` returned.

    Returns:
        A program whose outputs equal those of `program` up to rounding in float32.
    """
    program = _with_constants(_with_linear_layers(program))
    return _without_idle_masks(_with_rms_norms(_with_image_means(_with_folded_norms(program)))).without_unused()


def _with_linear_layers(program: Program) -> Program:
    """Replace products with a constant matrix, such as those of GPT-2's layers, by linear layers."""
    nodes: list[Node] = []
    for node in program.nodes:
        operands = _constant_product(program, node)
        if operands is None:
            nodes.append(node)
            continue
        data, matrix, *bias = operands
        turned = Node(f"{node.name}.matrix", "t.default", (matrix,), {}, node.module)
        nodes += [turned, Node(node.name, "linear.default", (data, Ref(turned.name), *bias), {}, node.module)]
    return replace(program, nodes=tuple(nodes), known=program.values)


def _constant_product(program: Program, node: Node) -> tuple[Ref, ...] | None:
    """(inputs, matrix) or (inputs, matrix, bias vector) of a product with a constant matrix; None for other nodes."""
    if node.op not in ("mm", "matmul", "addmm") or node.kwargs or not all(isinstance(one, Ref) for one in node.args):
        return None
    data, matrix, *bias = node.args if node.op != "addmm" else (*node.args[1:], node.args[0])
    constant = matrix.name in program.tensors and program.tensors[matrix.name].dim() == 2
    batched = len(program.shape_of(data.name) or ()) >= 2
    vector = all(one.name in program.tensors and program.tensors[one.name].dim() == 1 for one in bias)
    return (data, matrix, *bias) if constant and batched and vector else None


_MOST_CONSTANTS = 4
"""Constants may take this many times the bytes of the program's tensors: an expanded matrix can be large."""


def _with_constants(program: Program) -> Program:
    """Compute the values that depend on no input, such as positions and transposed matrices."""
    tensors: dict[str, Any] = dict(program.tensors)
    budget = _MOST_CONSTANTS * sum(tensor.numel() * tensor.itemsize for tensor in program.tensors.values())
    nodes: list[Node] = []
    for node in program.nodes:
        value = program.values.get(node.name)
        known = value is not None and set(node.reads) <= set(tensors)
        cost = math.prod(value.shapes[0]) * value.dtype.itemsize if value is not None else 0
        if not known or cost > budget:
            nodes.append(node)
            continue
        with torch.no_grad():
            torch_call(node)(tensors)
        tensors[node.name] = tensors[node.name].contiguous()
        budget -= cost
    return replace(program, nodes=tuple(nodes), tensors=tensors, known=program.values)


def batchnorm_scale_and_shift(norm: Node, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | float]:
    """(scale, mean, shift) in float64 of a BatchNorm in eval mode: y = (x - mean) * scale + shift."""
    gain, shift, mean, variance = (None if ref is None else tensors[ref.name].double() for ref in norm.args[1:5])
    assert mean is not None
    assert variance is not None
    scale = (variance + norm.args[7]).rsqrt() * (1 if gain is None else gain)
    return scale, mean, 0 if shift is None else shift


_BATCHED = {"linear": 2, "conv1d": 3, "conv2d": 4, "conv3d": 5}
"""Layer -> dimensions of a batch of its outputs."""


def _with_folded_norms(program: Program) -> Program:
    tensors = dict(program.tensors)
    foldable: dict[str, Node] = {}
    """Name -> layer, for layers into which a BatchNorm can be folded; replaced by the folded layer."""

    def change(node: Node) -> Node | Ref:
        if node.op == "batch_norm" and isinstance(node.args[0], Ref):
            layer = foldable.get(node.args[0].name)
            constant = not node.args[5] and all(ref is None or ref.name in tensors for ref in node.args[1:5])
            if layer is not None and program.use_counts[layer.name] == 1 and constant:
                foldable[layer.name] = _with_norm(program, layer, node, tensors)
                return Ref(layer.name)
        # BatchNorm has statistics of dimension 1, which holds the outputs only in a batch of vectors or images.
        batched = _is_wide(program, node.name) and len(program.shape_of(node.name) or ()) == _BATCHED.get(node.op)
        if batched and program.has_constant_parameters(node) and program.use_counts[node.args[1].name] == 1:
            foldable[node.name] = node
        return node

    rewritten = _rewritten(program, change)
    nodes = tuple(foldable.get(node.name, node) for node in rewritten.nodes)
    return replace(rewritten, nodes=nodes, tensors=tensors)


def _with_norm(program: Program, layer: Node, norm: Node, tensors: dict[str, Tensor]) -> Node:
    """The layer with the BatchNorm folded into its weight and bias. The new weight and bias are added to `tensors`."""
    scale, mean, shift = batchnorm_scale_and_shift(norm, tensors)
    weight_name = layer.args[1].name
    weight = tensors[weight_name]
    ref = layer.arguments["bias"]
    bias = torch.zeros_like(mean) if ref is None else tensors[ref.name].double()
    bias_name = f"{weight_name}.folded_bias"
    tensors[weight_name] = (weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    tensors[bias_name] = ((bias - mean) * scale + shift).to(weight.dtype)
    return replace(layer, args=(*layer.args[:2], Ref(bias_name), *layer.args[3:]))


def _with_image_means(program: Program) -> Program:
    """Replace `x.flatten(2).mean(2)` by a mean over rows and columns."""

    def change(node: Node) -> Node | Ref:
        if node.op != "mean" or len(node.args) != 2 or node.kwargs or not isinstance(node.args[0], Ref):
            return node
        flat = program.node_by_name.get(node.args[0].name)
        if flat is None or flat.op != "flatten" or list(node.args[1]) not in ([2], [-1]):
            return node
        shape = program.shape_of(flat.args[0].name)
        if shape is None or tuple(flat.args[1:]) != (2,) or len(shape) < 3:
            return node
        return replace(node, args=(flat.args[0], list(range(2, len(shape)))))

    return _rewritten(program, change)


def _with_rms_norms(program: Program) -> Program:
    """Replace `x * rsqrt(mean(x**2) + epsilon)`, and its product with a constant vector, by RMSNorm."""
    norms: dict[str, Node] = {}
    """Name -> RMSNorm without a weight that only one node reads."""

    def change(node: Node) -> Node | Ref:
        if node.target != "mul.Tensor" or len(node.reads) != 2:
            return node
        for data, other in (node.reads, node.reads[::-1]):
            epsilon = _inverse_root_mean_square(program, data, other)
            size = (program.shape_of(data) or (None,))[-1]
            if epsilon is not None and size is not None and _is_wide(program, node.name):
                norm = replace(node, target="rms_norm.default", args=(Ref(data), [size], None, epsilon))
                if program.use_counts[node.name] == 1:
                    norms[node.name] = norm
                return norm
            weight = program.tensors.get(other)
            if data in norms and weight is not None and list(weight.shape) == norms[data].args[1]:
                source, sizes, _, epsilon = norms[data].args
                return replace(node, target="rms_norm.default", args=(source, sizes, Ref(other), epsilon))
        return node

    return _rewritten(program, change)


def _inverse_root_mean_square(program: Program, data: str, name: str) -> float | None:
    """The epsilon, if the value `name` is 1 / sqrt(mean of the squares of `data` over its last dimension + epsilon)."""

    def made_by(name: str, *operators: str) -> Node | None:
        node = program.node_by_name.get(name)
        return node if node is not None and node.op in operators and not node.kwargs else None

    root = made_by(name, "rsqrt")
    added = made_by(root.reads[0], "add") if root is not None else None
    mean = made_by(added.reads[0], "mean") if added is not None and len(added.reads) == 1 else None
    if added is None or mean is None or len(mean.args) != 3 or mean.args[2] is not True:
        return None
    rank = len(program.shape_of(data) or ())
    square = made_by(mean.reads[0], "pow", "mul")
    squares = square is not None and (square.args[1] in (2, 2.0) or square.op == "mul")
    if not squares or square is None or set(square.reads) != {data} or list(mean.args[1]) not in ([-1], [rank - 1]):
        return None
    epsilon = added.args[1]
    return float(epsilon) if isinstance(epsilon, int | float) else None


def _is_wide(program: Program, name: str) -> bool:
    """Whether a value has at least the precision of float32: in half precision, rewriting changes results visibly."""
    value = program.values.get(name)
    return value is not None and value.dtype in (torch.float32, torch.float64)


def _without_idle_masks(program: Program) -> Program:
    """Remove constant attention masks that hide nothing: attention is faster without a mask."""

    def hides_nothing(name: str) -> bool:
        while name in program.node_by_name and program.node_by_name[name].op in ("expand", "reshape", "unsqueeze"):
            name = program.node_by_name[name].args[0].name
        mask = program.tensors.get(name)
        return mask is not None and bool(mask.all() if mask.dtype == torch.bool else (mask == 0).all())

    def change(node: Node) -> Node | Ref:
        mask = node.args[3] if node.op == "scaled_dot_product_attention" and len(node.args) > 3 else None
        if not isinstance(mask, Ref) or not hides_nothing(mask.name):
            return node
        return replace(node, args=(*node.args[:3], None, *node.args[4:]))

    return _rewritten(program, change)


# Dead units

_UNIT_LAYERS = ("linear", "conv1d", "conv2d")
_POOLING = ("max_pool2d", "adaptive_avg_pool2d")


@dataclass(frozen=True)
class _LayerPair:
    """Two layers such that only `reader` reads `layer`, through the channelwise operators `between`."""

    layer: Node
    between: tuple[Node, ...]
    reader: Node


def remove_dead_units(program: Program) -> Program:
    """Return a smaller program without units that cannot influence the output.

    A unit is dead if all its outgoing weights are zero, or if all its incoming weights are zero. In the second case its
    output is constant, and the constant is added to the bias of the next layer. These dead units are kept: units that
    several operators read, as at a residual connection; units with a non-zero constant output that a padded convolution
    reads, because padding replaces the constant by zero at the edges; and one unit of a layer in which all are dead.

    Args:
        program: What `fold_batchnorm` returned. A BatchNorm between two layers hides their dead units.

    Returns:
        A program whose outputs equal those of `program` up to rounding in float32.
    """
    traced = program
    # From the last layer to the first: a unit that only a dead unit reads is dead as well.
    for node in reversed(program.nodes):
        pair = _layer_pair(program, program.node_by_name[node.name], traced)
        if pair is not None:
            program = _without_dead_units(program, pair)
    return program.without_unused()


def _layer_pair(program: Program, layer: Node, traced: Program) -> _LayerPair | None:
    """The pair that starts with a layer. traced: the program before changes, whose shapes are known."""
    shape = traced.shape_of(layer.name)
    if shape is None or not _has_own_weight(program, layer):
        return None
    between: list[Node] = []
    # A convolution of an input without a batch has its channels in dimension 0.
    value, axis = layer, len(shape) - 1 if layer.op == "linear" else len(shape) - 1 - int(layer.op[4])
    while program.use_counts.get(value.name) == 1:
        reader = next((node for node in program.nodes if node.args and node.args[0] == Ref(value.name)), None)
        dimensions = len(traced.shape_of(value.name) or ())
        if reader is None or not dimensions:
            return None
        if reader.op in _UNIT_LAYERS:
            reads = dimensions - 1 if reader.op == "linear" else dimensions - 1 - int(reader.op[4])
            fits = axis == reads and _has_own_weight(program, reader)
            return _LayerPair(layer, tuple(between), reader) if fits else None
        after = _axis_after(reader, axis, dimensions)
        if after is None:
            return None
        between.append(reader)
        value, axis = reader, after
    return None


def _axis_after(node: Node, axis: int, dimensions: int) -> int | None:
    """The dimension that holds the units after an operator, if it does not mix them, nor with positions before them."""
    if activation_of(node) is not None:
        return axis
    if node.op in _POOLING:
        return axis if axis == 1 and dimensions == 4 else None
    if node.op == "flatten":
        start = node.args[1] if len(node.args) == 2 else None
        return None if start is None or axis > start else axis
    if node.op == "mean" and len(node.args) > 1 and isinstance(node.args[1], list) and not node.kwargs:
        axes = [one % dimensions for one in cast("list[int]", node.args[1])]
        kept = node.args[2:3] == (True,)
        return None if axis in axes else axis if kept else axis - sum(one < axis for one in axes)
    return None


def _has_own_weight(program: Program, node: Node) -> bool:
    """Whether the node is a layer without groups that shares no parameter with another node."""
    if node.op not in _UNIT_LAYERS or node.kwargs or not program.has_constant_parameters(node):
        return False
    groups = node.arguments.get("groups", 1)
    return groups == 1 and all(program.use_counts[ref.name] == 1 for ref in node.args[1:3] if ref is not None)


def _without_dead_units(program: Program, pair: _LayerPair) -> Program:
    layer, reader = pair.layer, pair.reader
    weight, reading = (program.tensors[node.args[1].name] for node in (layer, reader))
    units = len(weight)
    # After a flattened image, the reader has several inputs for each channel.
    inputs_per_unit = reading.shape[1] // units
    if reading.shape[1] != inputs_per_unit * units:
        return program
    per_unit = reading.reshape(len(reading), units, -1)
    constants = _constants(program, pair)
    constant = (weight.flatten(1) == 0).all(1)
    if reader.op != "linear" and any(_padding(reader)):
        constant &= constants == 0
    keep = ~((per_unit == 0).all(2).all(0) | constant)
    if bool(keep.all()):
        return program
    keep[0] |= not bool(keep.any())
    tensors = dict(program.tensors)
    removed = torch.where(constant & ~keep, constants, torch.zeros(units))
    added = (per_unit.double() * removed.double()[None, :, None]).sum((1, 2))
    before = program.bias_of(reader)
    bias_name = f"{reader.args[1].name}.compact_bias"
    tensors[bias_name] = (added if before is None else added + before.double()).to(reading.dtype)
    tensors[layer.args[1].name] = weight[keep].clone()
    bias = program.bias_of(layer)
    if bias is not None:
        tensors[layer.args[2].name] = bias[keep].clone()
    tensors[reader.args[1].name] = reading[:, keep.repeat_interleave(inputs_per_unit)].clone()
    changed = {reader.name: replace(reader, args=(*reader.args[:2], Ref(bias_name), *reader.args[3:]))}
    nodes = tuple(changed.get(node.name, node) for node in program.nodes)
    return replace(program, nodes=nodes, tensors=tensors, known={})


def _constants(program: Program, pair: _LayerPair) -> Tensor:
    """The constant that the reader receives from each unit if all incoming weights of the unit are zero.

    Means and pooling leave a constant as it is: the kernels of pooling read no padding as numbers.
    """
    bias = program.bias_of(pair.layer)
    value = torch.zeros(len(program.tensors[pair.layer.args[1].name])) if bias is None else bias.clone()
    for node in pair.between:
        if activation_of(node) is not None:
            value = resolve_operator(node.target)(value, *node.args[1:], **node.kwargs)
    return value


def _padding(convolution: Node) -> tuple[int, int]:
    padding = convolution.arguments["padding"]
    return (1, 1) if isinstance(padding, str) else as_pair(padding)
