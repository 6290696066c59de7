"""Recurrent layers as their steps: products with the hidden state, sums and activations, which the kernels execute."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from swamp.runtime.program import Node, Program, Ref, TensorInfo, map_refs

_MOST_STEPS = 512
"""Steps of all layers and directions of one recurrent layer: each becomes about ten nodes."""


def unroll_recurrences(program: Program) -> Program:
    """Replace LSTM, GRU and RNN layers by the steps that they compute one after the other.

    For each layer and direction, one linear layer computes the products of all inputs. A layer stays whole if its
    number of steps varies or is large, if it has projections or computed weights, if it is not float32, or if torch
    must execute it (`Program.in_torch`).

    Args:
        program: What `fold_batchnorm` returned.

    Returns:
        A program whose outputs equal those of `program` up to rounding in float32. The names of new nodes begin with
        the name of their layer and a slash.
    """
    replaced: dict[tuple[str, int], Ref] = {}
    """(layer, number of the output) -> its new value."""
    results: dict[str, Ref] = {}
    nodes: list[Node] = []
    tensors = dict(program.tensors)
    known = dict(program.values)

    def follow(ref: Ref) -> Ref:
        return results.get(ref.name, ref)

    for old in program.nodes:
        node = replace(old, args=map_refs(old.args, follow), kwargs=map_refs(old.kwargs, follow))
        layer = _Recurrence.of(program, node)
        if layer is not None:
            writer = _Unroller(layer, nodes, tensors, known)
            replaced |= {(node.name, number): ref for number, ref in enumerate(writer.write())}
        elif node.target == "operator.getitem" and (key := (node.args[0].name, node.args[1])) in replaced:
            results[node.name] = replaced[key]
        else:
            nodes.append(node)
    if not replaced:
        return program
    output = map_refs(program.output, follow)
    unrolled = replace(program, nodes=tuple(nodes), tensors=tensors, output=output, known=known)
    return unrolled.without_unused()


def original_node(name: str) -> str:
    """The name of the node of the traced program that this one was unrolled from, or is."""
    return name.partition("/")[0]


@dataclass(frozen=True)
class _Recurrence:
    """A recurrent layer of torch."""

    node: Node
    kind: str
    """lstm, gru, rnn_tanh or rnn_relu."""
    steps: int
    states: tuple[Ref, ...]
    """Initial hidden states (layers * directions, batch, features); for an LSTM also the cell states."""
    parameters: tuple[tuple[Ref, ...], ...]
    """For each layer and direction: weights of inputs and of hidden states, and their biases if there are any."""
    directions: int
    batch_first: bool
    batches: tuple[int, ...]
    """The number of examples in each probe of the program."""

    @classmethod
    def of(cls, program: Program, node: Node) -> "_Recurrence | None":
        """The layer that a node is; None if it is none, or cannot be replaced."""
        if node.target not in ("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"):
            return None
        data, states, parameters, has_biases, layers, _, _, bidirectional, batch_first = node.args
        refs: tuple[Ref, ...] = tuple(states) if isinstance(states, list) else (states,)  # pyright: ignore
        count, directions = 4 if has_biases else 2, 2 if bidirectional else 1
        shape, value = program.shape_of(data.name), program.values.get(data.name)
        steps = shape[1 if batch_first else 0] if shape is not None and len(shape) == 3 else None
        whole = len(parameters) == count * layers * directions  # with projections there are more
        constant = all(ref.name in program.tensors for ref in parameters)
        float32 = value is not None and value.dtype == torch.float32
        known = steps is not None and 0 < steps * layers * directions <= _MOST_STEPS
        read = {one.args[0].name for one in program.nodes if one.target == "operator.getitem"}
        if (
            node.kwargs
            or node.name in program.in_torch
            or not (whole and constant and float32 and known)
            or node.name not in read
        ):
            return None
        grouped = tuple(tuple(parameters[at : at + count]) for at in range(0, len(parameters), count))
        batches = tuple(shape[0 if batch_first else 1] for shape in value.shapes) if value else ()
        return cls(node, node.op, steps or 0, refs, grouped, directions, batch_first, batches)


class _Unroller:
    """Writes the steps of a recurrent layer as nodes of the program."""

    def __init__(
        self, layer: _Recurrence, nodes: list[Node], tensors: dict[str, Tensor], known: dict[str, TensorInfo]
    ) -> None:
        self.layer, self.nodes, self.tensors, self.known = layer, nodes, tensors, known
        self.gates = {"lstm": 4, "gru": 3}.get(layer.kind, 1)
        self.step = _STEPS[layer.kind]
        self.count = 0

    def write(self) -> list[Ref]:
        """Write all nodes; returns the outputs of the layer."""
        layer = self.layer
        data = layer.node.args[0] if layer.batch_first else self.add("transpose.int", layer.node.args[0], 0, 1)
        last: list[tuple[Ref, ...]] = []
        for number in range(0, len(layer.parameters), layer.directions):
            found = [self._unrolled_direction(data, number + one, reverse=one == 1) for one in range(layer.directions)]
            hidden = [ref for step in zip(*(states for states, _ in found), strict=True) for ref in step]
            last += [states for _, states in found]
            joined = self.add("cat.default", hidden, 1)
            size = layer.directions * self._hidden_size(number)
            data = self.add("reshape.default", joined, [-1, layer.steps, size])
        output = data if layer.batch_first else self.add("transpose.int", data, 0, 1)
        return [output, *(self.add("stack.default", list(states)) for states in zip(*last, strict=True))]

    def add(self, target: str, *args: Any) -> Ref:
        """Add a node."""
        node = self.layer.node
        self.count += 1
        self.nodes.append(Node(f"{node.name}/{self.count}", target, args, {}, node.module))
        return Ref(self.nodes[-1].name)

    def _hidden_size(self, number: int) -> int:
        return len(self.tensors[self.layer.parameters[number][1].name]) // self.gates

    def _unrolled_direction(self, data: Ref, number: int, *, reverse: bool) -> tuple[list[Ref], tuple[Ref, ...]]:
        """The hidden state after each step in one direction of one layer, and the last states."""
        size = self._hidden_size(number)
        input_weight, hidden_weight, *biases = self.layer.parameters[number]
        width = self.gates * size
        inputs, hidden = (self.tensors[ref.name] for ref in biases) if biases else torch.zeros(2, width)
        # The reset gate of a GRU multiplies W h + b of the candidate, so this b cannot join the bias of the inputs.
        apart = 2 * size if self.layer.kind == "gru" else width
        joint = torch.cat([inputs[:apart] + hidden[:apart], inputs[apart:]])
        # Named by the node: layers that share a weight may have biases of their own.
        prefix = f"{self.layer.node.name}/{number}"
        bias = [self._stored(f"{prefix}/bias", joint)] if biases else []
        projected = self.add("linear.default", data, input_weight, *bias)
        flat = self.add("reshape.default", projected, [-1, self.layer.steps * width])
        layers: list[list[Any]] = []
        for gate, weight in enumerate(torch.split(self.tensors[hidden_weight.name], size)):
            shifts = [self._stored(f"{prefix}/bias{gate}", hidden[apart:])] if biases and gate * size >= apart else []
            layers.append([self._stored(f"{prefix}/weight{gate}", weight.contiguous()), *shifts])
        # All that a step computes has the shape of the hidden state.
        step_info = TensorInfo(torch.float32, tuple((batch, size) for batch in self.layer.batches))

        def add(target: str, *args: Any) -> Ref:
            added = self.add(target, *args)
            self.known[added.name] = step_info
            return added

        states = tuple(self.add("select.int", ref, 0, number) for ref in self.layer.states)
        found: dict[int, Ref] = {}
        for time in sorted(range(self.layer.steps), reverse=reverse):
            places = [time * width + gate * size for gate in range(self.gates)]
            parts = [add("slice.Tensor", flat, 1, place, place + size) for place in places]
            states = self.step(add, parts, layers, states)
            found[time] = states[0]
        return [found[time] for time in range(self.layer.steps)], states

    def _stored(self, name: str, tensor: Tensor) -> Ref:
        self.tensors[name] = tensor
        return Ref(name)


# One step: (add a node, products of the inputs by gate, [weight, bias] of the hidden state by gate, states) -> states.
# The formulas are those of torch.nn.LSTM, GRU and RNN.

_Add = Callable[..., Ref]
_States = tuple[Ref, ...]


def _lstm_step(add: _Add, parts: Sequence[Ref], layers: Sequence[list[Any]], states: _States) -> _States:
    hidden, cell = states
    sums = [
        add("add.Tensor", part, add("linear.default", hidden, *layer))
        for part, layer in zip(parts, layers, strict=True)
    ]
    candidate = add("tanh.default", sums[2])
    enters, stays, leaves = (add("sigmoid.default", sums[gate]) for gate in (0, 1, 3))
    cell = add("add.Tensor", add("mul.Tensor", stays, cell), add("mul.Tensor", enters, candidate))
    return add("mul.Tensor", leaves, add("tanh.default", cell)), cell


def _gru_step(add: _Add, parts: Sequence[Ref], layers: Sequence[list[Any]], states: _States) -> _States:
    (hidden,) = states
    products = [add("linear.default", hidden, *layer) for layer in layers]
    reset, stays = (add("sigmoid.default", add("add.Tensor", parts[gate], products[gate])) for gate in range(2))
    candidate = add("tanh.default", add("add.Tensor", parts[2], add("mul.Tensor", reset, products[2])))
    # candidate + stays * (hidden - candidate)
    change = add("add.Tensor", hidden, add("mul.Tensor", candidate, -1.0))
    return (add("add.Tensor", candidate, add("mul.Tensor", stays, change)),)


def _rnn_step(activation: str) -> Callable[[_Add, Sequence[Ref], Sequence[list[Any]], _States], _States]:
    def step(add: _Add, parts: Sequence[Ref], layers: Sequence[list[Any]], states: _States) -> _States:
        return (add(activation, add("add.Tensor", parts[0], add("linear.default", states[0], *layers[0]))),)

    return step


_STEPS: Mapping[str, Any] = {
    "lstm": _lstm_step,
    "gru": _gru_step,
    "rnn_tanh": _rnn_step("tanh.default"),
    "rnn_relu": _rnn_step("relu.default"),
}
