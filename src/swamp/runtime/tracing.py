"""Trace a module with torch.export: turn it and its mask into a program."""

import operator
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from swamp.errors import MaskError, SwampError, shortened
from swamp.masks import Mask
from swamp.model_copy import copied_model
from swamp.runtime.program import Input, Node, Program, Ref, Shape, map_refs, resolve_operator
from swamp.runtime.rewrite import without_identities


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
        MaskError: The mask belongs to another model, or there is neither a mask nor a zero weight.

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
        mask = Mask.from_zeros(baked)
        if mask.nnz == mask.prunable:
            raise MaskError(
                f"{type(model).__name__} has no pruned weights: pass its mask (swamp.Mask.load), or prune it first."
            )
    mask.apply_(baked)
    weights = dict(baked.named_parameters())
    extra = [name for name, active in mask.items() if int((weights[name] != 0).sum()) < int(active.sum())]
    if extra:
        warnings.warn(f"some weights of {shortened(extra)} are zero although the mask keeps them.", stacklevel=2)
    return baked


def trace(model: nn.Module, example: Tensor | Sequence[Tensor]) -> Program:
    """Convert a module in eval mode to a program that accepts any batch size.

    If the code of the network requires a fixed batch size, so does the program.

    Args:
        model: The network. It is copied to the CPU and not changed.
        example: The input tensor, or one tensor for each input. Dimension 0 is the batch and has size 2 or more.

    Returns:
        The program, with every parameter and buffer under the name that it has in the module.

    Raises:
        SwampError: torch.export cannot trace the network, or an operator is not a pure function of tensors.

    Examples:
        >>> import torch
        >>> from swamp.runtime import trace
        >>> program = trace(torch.nn.Linear(3, 2), torch.ones(2, 3))
        >>> [node.op for node in program.nodes], sorted(program.tensors)
        (['linear'], ['bias', 'weight'])
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if any(tensor.dim() == 0 or len(tensor) < 2 for tensor in inputs):
        raise SwampError("an export needs example inputs with a size of 2 or more in dimension 0, the batch.")
    model = copied_model(model).cpu().eval()
    return without_identities(_to_program(_exported(model, tuple(tensor.cpu() for tensor in inputs))))


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad():
            # Not strict, as is the default of newer torch: in strict mode of torch 2.6 a process can trace 8 networks.
            try:
                return torch.export.export(
                    model, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
                )
            except torch._dynamo.exc.UserError:  # pyright: ignore
                return torch.export.export(model, inputs, strict=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SwampError(
            f"torch.export cannot follow {type(model).__name__} ({reason}). An export needs a forward pass whose path "
            "does not depend on the values of its inputs."
        ) from error


def _to_program(exported: Any) -> Program:
    signature = exported.graph_signature
    state = {**exported.state_dict, **exported.constants}
    # Names in the graph -> names in the module.
    names: dict[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors: dict[str, Tensor] = {}
    inputs: list[Input] = []
    nodes: list[Node] = []
    output: Any = None
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            tensors[names[node.name]] = state[names[node.name]].detach().clone()
        elif node.op == "placeholder":
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                raise SwampError(f"input {node.name!r} is not a tensor; an exported network takes only tensors.")
            inputs.append(Input(node.name, _shape(value), value.dtype))
        elif node.op == "call_function":
            nodes.append(_to_node(node, names))
        elif node.op == "output":
            output = _to_refs(node.args[0], names)
    return Program(tuple(inputs), tuple(nodes), _unwrapped(output, exported.call_spec.out_spec), tensors)


def _unwrapped(output: Any, spec: Any) -> Any:
    """The output as the module returns it: one tensor, or a tuple or list."""
    if spec is not None and spec.is_leaf():
        return output[0]
    if spec is not None and spec.type not in (tuple, list):
        raise SwampError(
            f"the network returns {spec.type.__name__}; an exported network returns one tensor or a tuple of tensors."
        )
    return output


def _to_node(node: fx.Node, names: dict[str, str]) -> Node:
    target: Any = node.target
    stack = cast("dict[str, tuple[str, Any]]", node.meta.get("nn_module_stack") or {})
    module = list(stack.values())[-1][0] if stack else ""
    value = node.meta.get("val")
    if type(target).__name__ == "OpOverload" and target.namespace == "aten":
        name = str(target).removeprefix("aten.")
    elif getattr(operator, getattr(target, "__name__", ""), None) is target:
        name = f"operator.{target.__name__}"
    else:
        name = ""
    try:
        resolve_operator(name)
    except SwampError as error:
        where = f" (in {module!r})" if module else ""
        raise SwampError(
            f"a program cannot contain the operation {target}{where}: it is not a pure function of tensors."
        ) from error
    shape = _shape(value) if isinstance(value, Tensor) else None
    return Node(node.name, name, _to_refs(node.args, names), _to_refs(node.kwargs, names), module, shape)


def _shape(value: Tensor) -> Shape:
    return tuple(size if isinstance(size, int) else None for size in value.shape)  # pyright: ignore


def _to_refs(argument: Any, names: dict[str, str]) -> Any:
    def to_ref(node: fx.Node) -> Ref:
        return Ref(names.get(node.name, node.name))

    return map_refs(argument, to_ref, fx.Node)
