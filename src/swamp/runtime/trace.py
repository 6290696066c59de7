"""From a module to a program, by torch.export."""

import copy
import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from swamp.errors import SwampError
from swamp.runtime.program import Input, Program, Ref, Shape, Step, operation
from swamp.runtime.rewrite import without_identities


def trace(model: nn.Module, example: Tensor | Sequence[Tensor]) -> Program:
    """The program of `model` in eval mode, for inputs like `example` and any number of examples a batch.

    example: one tensor, or one for each input; dimension 0 is the batch, of two examples or more. Where the network
    cannot take any batch (its code asks for a fixed one) the program takes that of the example. The program has every
    parameter and buffer under the name it has in the module. Raises SwampError for networks that torch.export cannot
    follow, and for operations that are not plain functions of tensors, with the path of their module.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if any(tensor.dim() == 0 or len(tensor) < 2 for tensor in inputs):
        raise SwampError("an export needs an example of two inputs or more along dimension 0, the batch.")
    model = copy.deepcopy(model).cpu().eval()
    return without_identities(_program(_exported(model, tuple(tensor.cpu() for tensor in inputs))))


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad():
            try:
                return torch.export.export(model, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
            except torch._dynamo.exc.UserError:  # pyright: ignore
                return torch.export.export(model, inputs)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SwampError(
            f"torch.export cannot follow {type(model).__name__} ({reason}). An export needs a forward pass whose path "
            "does not depend on the values of its inputs."
        ) from error


def _program(exported: Any) -> Program:
    signature = exported.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants: dict[str, str] = dict(signature.inputs_to_lifted_tensor_constants)
    state = {**exported.state_dict, **exported.constants}
    tensors: dict[str, Tensor] = {}
    inputs: list[Input] = []
    steps: list[Step] = []
    names: dict[str, str] = {}
    output: Any = None
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in {**named, **constants}:
            names[node.name] = {**named, **constants}[node.name]
            tensors[names[node.name]] = state[names[node.name]].detach().clone()
        elif node.op == "placeholder":
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                raise SwampError(f"input {node.name!r} is no tensor; an exported network takes tensors alone.")
            inputs.append(Input(node.name, _shape(value), value.dtype))
        elif node.op == "call_function":
            steps.append(_step(node, names))
        elif node.op == "output":
            output = _argument(node.args[0], names)
    wrap: Any = exported.call_spec.out_spec
    if wrap is not None and wrap.is_leaf():
        output = output[0]
    elif wrap is not None and wrap.type not in (tuple, list):
        raise SwampError(f"the network gives {wrap.type.__name__}; an export can give one tensor or a tuple of them.")
    return Program(tuple(inputs), tuple(steps), output, tensors)


def _step(node: Node, names: dict[str, str]) -> Step:
    target: Any = node.target
    stack = cast("dict[str, tuple[str, Any]]", node.meta.get("nn_module_stack") or {})
    module = list(stack.values())[-1][0] if stack else ""
    args, kwargs = _argument(node.args, names), _argument(node.kwargs, names)
    value = node.meta.get("val")
    shape = _shape(value) if isinstance(value, Tensor) else None
    if type(target).__name__ == "OpOverload" and target.namespace == "aten":
        name = str(target).removeprefix("aten.")
    elif getattr(operator, getattr(target, "__name__", ""), None) is target:
        name = f"operator.{target.__name__}"
    else:
        name = ""
    try:
        operation(name)
    except SwampError as error:
        where = f" (in {module!r})" if module else ""
        raise SwampError(f"the exporter cannot follow the operation {target}{where}.") from error
    return Step(node.name, name, args, kwargs, module, shape)


def _shape(value: Tensor) -> Shape:
    return tuple(size if isinstance(size, int) else None for size in value.shape)  # pyright: ignore


def _argument(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, Node):
        return Ref(names.get(value.name, value.name))
    if isinstance(value, dict):
        return {key: _argument(inner, names) for key, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        changed = [_argument(inner, names) for inner in cast("list[Any]", value)]
        return tuple(changed) if isinstance(value, tuple) else changed
    return value
