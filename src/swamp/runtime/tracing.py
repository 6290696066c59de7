"""Trace a module with torch.export: turn it and its mask into a program."""

import math
import operator
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from swamp.errors import SwampError, first_line, shortened, warn
from swamp.masks import Mask
from swamp.model_copy import copied_model
from swamp.runtime.flat_model import FlatModel, VaryingSizes
from swamp.runtime.operators import is_random
from swamp.runtime.program import BATCH, Input, Node, Program, Ref, Size, map_refs


def bake_mask(model: nn.Module, mask: Mask | None = None) -> nn.Module:
    """Return a copy of `model` in eval mode with its pruned weights set to zero.

    Warns if the model has zeros that the mask counts as active: the kernels skip them too, but the sparsity that is
    computed from the mask does not include them.

    Args:
        model: The network. It is not changed.
        mask: The active weights. Default: all weights that are not zero.

    Returns:
        The copy.

    Raises:
        MaskError: The mask belongs to another model.

    Examples:
        >>> import torch, swamp
        >>> from swamp.runtime.tracing import bake_mask
        >>> model = torch.nn.Linear(2, 1)
        >>> mask = swamp.Mask({"weight": torch.tensor([[True, False]])})
        >>> (bake_mask(model, mask).weight != 0).tolist()
        [[True, False]]
    """
    baked = copied_model(model).eval()
    if mask is None:
        return baked
    mask.apply_(baked)
    weights = dict(baked.named_parameters())
    extra = [name for name, active in mask.items() if int((weights[name] != 0).sum()) < int(active.sum())]
    if extra:
        warn(f"some weights of {shortened(extra)} are zero although the mask keeps them.")
    return baked


def trace(model: nn.Module, example: Any, *, dynamic: VaryingSizes | None = None) -> Program:
    """Convert a module in eval mode to a program.

    Its graph is functional: operators in place become operators that return their result. Dropout and other operators
    that do nothing in eval mode are left out. If the code of the network requires a fixed batch size, so does the
    program.

    Args:
        model: The network. It is copied to the CPU and not changed.
        example: What the network is called with: a tensor, a tuple or list (positional arguments) or a mapping (keyword
            arguments). Tensors may be nested in tuples, lists, dicts and dataclasses; other values stay constants.
        dynamic: The sizes that vary. Default: dimension 0 of every input, as far as it has the size that it has in the
            first input: the batch.

    Returns:
        The program, with every parameter and buffer under the name that it has in the module.

    Raises:
        SwampError: torch.export cannot trace the network, it draws random numbers, it returns something else than
            tensors in containers, or a size in `dynamic` cannot vary.

    Examples:
        >>> import torch
        >>> from swamp.runtime.tracing import trace
        >>> program = trace(torch.nn.Linear(3, 2), torch.ones(2, 3))
        >>> [node.op for node in program.nodes], sorted(program.tensors)
        (['linear'], ['bias', 'weight'])
    """
    return trace_flat(FlatModel(copied_model(model).cpu().eval(), example), dynamic)


def trace_flat(flat: "FlatModel", dynamic: VaryingSizes | None) -> Program:
    """The program of a flat model. As for `trace`."""
    single = flat.tensors
    if dynamic is None and flat.repeat_single_example():
        # torch.export takes a size of 1 as fixed. If two examples do not fit, dimension 0 is not the batch.
        try:
            return trace_flat(flat, dynamic)
        except SwampError:
            flat.tensors = single
    return _Translation(flat, _exported(flat, flat.dynamic_shapes(dynamic)), dynamic).program()


def _exported(flat: FlatModel, shapes: Any) -> Any:
    model = flat.model
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Not strict, as is the default of newer torch: in strict mode of torch 2.6 a process can trace 8 networks.
            exporting: Any = torch.export
            exported = exporting.export(flat, tuple(flat.tensors.values()), dynamic_shapes=shapes, strict=False)
            # An empty table of decompositions: operators stay whole (BatchNorm, LSTM, attention), but those in place
            # are replaced.
            return exported.run_decompositions({})
    except SwampError:
        raise
    except Exception as error:
        reason = first_line(error)
        try:
            with torch.no_grad():
                flat(*(tensor.clone() for tensor in flat.tensors.values()))
        except Exception as own:
            raise SwampError(f"{type(model).__name__} cannot be called with the example ({first_line(own)}).") from own
        raise SwampError(
            f"torch.export cannot follow {type(model).__name__} ({reason}). An export needs a forward pass whose path "
            "does not depend on the values of its inputs."
        ) from error


_IDENTITIES = (
    *("clone", "detach", "alias", "lift", "lift_fresh", "lift_fresh_copy", "contiguous"),
    *("resolve_conj", "resolve_neg"),
)
"""Operators that return their input."""
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
_SAME_SHAPE = ("slice", "expand", "reshape", "view", "_unsafe_view", "view_copy", "expand_copy", "repeat", "flatten")
"""Operators that return their input if its shape does not change."""
_VIEWS = ("view", "_unsafe_view", "view_copy", "_reshape_copy")
_CHECKS = (
    *("sym_constrain_range", "sym_constrain_range_for_size"),
    *("_assert_scalar", "_assert_async", "_assert_tensor_metadata"),
)
_UNINITIALISED = {
    "empty.memory_format": "zeros.default",
    "empty_like.default": "zeros_like.default",
    "new_empty.default": "new_zeros.default",
}
_PUBLIC_NAMES = {
    "_conj": "conj_physical",
    "_neg_view": "neg",
    "_unsafe_index": "index",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
    "__lshift__": "bitwise_left_shift",
    "__rshift__": "bitwise_right_shift",
}
"""Internal names of operators, and the names under which torch documents the same values."""
_PLACES = ("device", "pin_memory", "non_blocking")
"""Arguments that say where a tensor is; a program runs where its inputs are."""


class _Translation:
    """Translates the graph of torch.export to the nodes of a program."""

    def __init__(self, flat: FlatModel, exported: Any, dynamic: VaryingSizes | None) -> None:
        self.flat, self.exported, self.dynamic = flat, exported, dynamic
        self.values: dict[fx.Node, Any] = {}
        """Node of the graph -> what a program has in its place: a reference, a constant, or a list of these."""
        self.nodes: list[Node] = []
        self.names: set[str] = set()
        self.input_names: dict[str, str] = {}
        """Place in the arguments -> name of the input."""
        self.size_names: dict[str, str] = {}
        """Symbol of torch.export -> name of a size."""
        self.examples: dict[str, int] = {}
        """Symbol of torch.export -> the size in the example, where a dimension has just this size."""
        self.keeps_strides = any("as_strided" in str(node.target) for node in exported.graph.nodes)

    def program(self) -> Program:
        exported, signature = self.exported, self.exported.graph_signature
        stored = {**exported.state_dict, **exported.constants}
        names: dict[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        tensors: dict[str, Tensor] = {}
        inputs: list[Input] = []
        self.names |= {name.removeprefix("model.") for name in names.values()}
        placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
        examples = iter(self.flat.tensors.items())
        for node in placeholders:
            if node.name in names:
                name = names[node.name].removeprefix("model.")
                tensors[name] = stored[names[node.name]].detach().clone().contiguous()
                self.values[node] = Ref(name)
            elif isinstance(node.meta.get("val"), Tensor):
                inputs.append(self._input(node, *next(examples)))
            else:
                raise SwampError(f"{node.name!r} is not a tensor; an exported network takes and holds only tensors.")
        inputs = self._with_fixed_batch(inputs)
        sizes = {name: self._size(symbol) for symbol, name in reversed(self.size_names.items())}
        batch = sizes.get(BATCH)
        if batch is not None and (batch.minimum > 1 or batch.maximum is not None):
            limits = f"{batch.minimum} or more" if batch.maximum is None else f"{batch.minimum} to {batch.maximum}"
            warn(
                f"the exported network takes batches of {limits} examples only: the network does something else with "
                f"other numbers than the {batch.example} of the example."
            )
        outputs = self._translated(exported.graph, exported.graph_module)
        kinds = [one.kind.name for one in signature.output_specs]
        mutated = [one.target for one in signature.output_specs if one.kind.name == "BUFFER_MUTATION"]
        changed = [name.removeprefix("model.") for name in mutated]
        if changed:
            warn(f"the network changes its buffers {shortened(changed)} in each call; the exported network does not.")
        own = [value for value, kind in zip(outputs, kinds, strict=True) if kind == "USER_OUTPUT"]
        output = map_refs(self.flat.record.output, lambda ref: own[int(ref.name)])
        arguments = map_refs(self.flat.arguments, lambda ref: Ref(self.input_names[ref.name]))
        program = Program(tuple(inputs), tuple(self.nodes), output, tensors, arguments, sizes, self._state(tensors))
        return program.without_unused(keep_tensors=True)

    def _input(self, node: fx.Node, place: str, example: Tensor) -> Input:
        name = self._unique(place)
        self.values[node] = Ref(name)
        self.input_names[place] = name
        named = (self.dynamic or {}).get(place, {})
        shape: list[int | str] = []
        for axis, size in enumerate(node.meta["val"].shape):
            shape.append(self._stated(size, named.get(axis, BATCH)))
            if axis in named and isinstance(shape[-1], int):
                raise SwampError(
                    f"dimension {axis} of {place!r} cannot vary: the code of the network fixes it to {shape[-1]}."
                )
        whole = example.numel() and not example.is_complex()
        low, high = (float(example.min()), float(example.max())) if whole else (0.0, 0.0)
        return Input(name, tuple(shape), example.dtype, low, high)

    def _with_fixed_batch(self, inputs: list[Input]) -> list[Input]:
        """The inputs, with the same batch size in all of them if the code of the network fixes it in one of them."""
        first = {one.shape[0] for one in inputs if one.shape}
        if self.dynamic is not None or BATCH not in first or len(first) == 1:
            return inputs
        example = next(len(tensor) for tensor in self.flat.tensors.values() if tensor.dim())
        if example not in first:
            return inputs
        self.size_names.clear()
        return [replace(one, shape=tuple(example if size == BATCH else size for size in one.shape)) for one in inputs]

    def _stated(self, size: Any, name: str) -> int | str:
        """A size of an input: a number, or the name of a size that varies, or a multiple of one."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        symbols = sorted(expression.free_symbols, key=str)
        if not symbols:  # a size that may vary, but that the code of the network fixes
            return int(expression)
        if len(symbols) != 1:
            raise SwampError(f"the size {expression} of an input depends on several sizes; name them in dynamic.")
        symbol = str(symbols[0])
        # torch.export gives each dimension a symbol of its own, until the code of the network needs two to be equal.
        self.size_names.setdefault(symbol, name)
        if str(expression) == symbol:
            self.examples[symbol] = int(size.node.hint)
        return str(expression).replace(symbol, self.size_names[symbol])

    def _size(self, symbol: str) -> Size:
        limits = {str(key): value for key, value in self.exported.range_constraints.items()}.get(symbol)
        low, high = (int(limits.lower), limits.upper) if limits is not None else (1, math.inf)
        maximum = int(high) if high < 2**60 else None
        # torch.export tells 0 and 1 from other sizes, but hardly any network does.
        return Size(1 if low <= 2 else low, maximum, self.examples.get(symbol, 2))

    def _state(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Name in the state dict -> name in the program, where tied tensors have one name."""
        state: dict[str, Any] = self.flat.model.state_dict(keep_vars=True)
        objects = dict(self.flat.model.named_parameters(remove_duplicate=False))
        objects |= dict(self.flat.model.named_buffers(remove_duplicate=False))
        by_object = {id(objects[name]): name for name in tensors if name in objects}
        found = {name: by_object.get(id(value), "") for name, value in state.items() if isinstance(value, Tensor)}
        return {name: own for name, own in found.items() if own}

    def _unique(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def _translated(self, graph: fx.Graph, module: Any) -> list[Any]:
        """Add the nodes of a graph to the program, and return its outputs."""
        for node in graph.nodes:
            if node.op == "get_attr":
                self.values[node] = getattr(module, str(node.target))
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                return list(self._arguments(node.args[0]))
        return []

    def _arguments(self, argument: Any) -> Any:
        return map_refs(argument, lambda node: self.values[node], fx.Node)

    def _call(self, node: fx.Node) -> Any:
        """What a program has in place of a node: mostly a reference to a node of its own."""
        target: Any = node.target
        args, kwargs = self._arguments(node.args), self._arguments(dict(node.kwargs))
        if target is operator.getitem and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        if getattr(target, "namespace", "") == "higher_order":
            return self._inlined(node, str(target), args)
        name = _operator_name(target)
        base, _, overload = name.rpartition(".")
        if base in _CHECKS:
            return None
        before, after = _shape(_source(node)), _shape(node.meta.get("val"))
        if self._is_identity(base, node, args, before, after):
            first = args[0]
            return (first, None) if base == "native_dropout" else first
        if base.startswith("_native_batch_norm_legit") and overload != "no_stats" and "no_training" in base:
            data, weight, bias, mean, variance, momentum, eps = args
            arguments = (data, weight, bias, mean, variance, False, momentum, eps, False)
            return [self._node(node, "batch_norm.default", arguments, {}), None, None]
        if base in _VIEWS and overload != "dtype":
            start = _flattened_from(before, after)
            if start is not None:
                return self._node(node, "flatten.using_ints", (args[0], start), {})
            base, overload = "reshape", "default"
        kwargs = {key: value for key, value in kwargs.items() if key not in _PLACES}
        if name in _UNINITIALISED:
            kwargs.pop("memory_format", None)
            base, _, overload = _UNINITIALISED[name].partition(".")
        name = _PUBLIC_NAMES.get(base, base) + f".{overload}"
        return self._node(node, name, args, kwargs)

    def _is_identity(self, base: str, node: fx.Node, args: Any, before: Any, after: Any) -> bool:
        if base in _DROPOUTS:
            return not (len(args) > 2 and args[2])
        if base in _IDENTITIES:
            # A copy changes the strides, which only as_strided can see: views are reshapes in a program.
            return not self.keeps_strides
        if base in _SAME_SHAPE and before is not None and before == after:
            return base != "slice" or len(args) < 5 or args[4] == 1
        if base in ("to", "_to_copy", "type_as"):
            source, value = _source(node), node.meta.get("val")
            return isinstance(source, Tensor) and isinstance(value, Tensor) and source.dtype == value.dtype
        return False

    def _node(self, node: fx.Node, target: str, args: Any, kwargs: Mapping[str, Any]) -> Ref:
        try:
            random = is_random(target, args, kwargs)
        except SwampError as error:
            raise SwampError(
                f"a program cannot contain the operation {node.target}{_place(node)}: it is not a pure function of "
                "tensors."
            ) from error
        if random:
            raise SwampError(
                f"the network draws random numbers ({target}{_place(node)}), also in eval mode. An exported network "
                "gives the same output for the same input: leave them out, as dropout(x, training=self.training) does."
            )
        name = self._unique(node.name)
        self.nodes.append(Node(name, target, tuple(args), dict(kwargs), _module(node)))
        return Ref(name)

    def _inlined(self, node: fx.Node, name: str, args: Any) -> Any:
        """The outputs of a part of the graph that torch.export keeps as a function, such as one without gradients."""
        enabled = "autocast" in name and args[2]
        graph = next((one for one in args if isinstance(one, fx.GraphModule)), None)
        if not name.startswith("wrap_with") or enabled or graph is None:
            raise SwampError(
                f"a program cannot contain {name}{_place(node)}: a branch or loop that depends on numbers, or autocast."
            )
        given = args[args.index(graph) + 1 :]
        for placeholder, value in zip((n for n in graph.graph.nodes if n.op == "placeholder"), given, strict=True):
            self.values[placeholder] = value
        return self._translated(graph.graph, graph)


def _operator_name(target: Any) -> str:
    if type(target).__name__ == "OpOverload":
        return str(target).removeprefix("aten.")
    module = {"_operator": "operator"}.get(getattr(target, "__module__", ""), getattr(target, "__module__", ""))
    return f"{module}.{getattr(target, '__name__', target)}"


def _module(node: fx.Node) -> str:
    stack = cast("dict[str, tuple[str, Any]]", node.meta.get("nn_module_stack") or {})
    path = list(stack.values())[-1][0] if stack else ""
    return path.removeprefix("model").removeprefix(".")


def _place(node: fx.Node) -> str:
    return f" in {_module(node)!r}" if _module(node) else ""


def _source(node: fx.Node) -> Any:
    first = node.args[0] if node.args else None
    return first.meta.get("val") if isinstance(first, fx.Node) else None


def _shape(value: Any) -> tuple[str, ...] | None:
    """The shape of a traced tensor, with its symbols as text."""
    return tuple(str(size) for size in value.shape) if isinstance(value, Tensor) else None


def _flattened_from(before: tuple[str, ...] | None, after: tuple[str, ...] | None) -> int | None:
    """The first of the trailing dimensions that a reshape merges to one, if that is all it does."""
    if before is None or after is None or len(after) >= len(before) or len(after) < 2:
        return None
    start = len(after) - 1
    merged = before[start:]
    if before[:start] != after[:start] or not all(size.isdigit() for size in (*merged, after[-1])):
        return None
    return start if math.prod(int(size) for size in merged) == int(after[-1]) else None
