"""The operators that a program may contain: pure functions of tensors and sizes, by name."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch

from swamp.errors import SwampError

_ON_SIZES: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in (
            *("mul", "add", "sub", "floordiv", "truediv", "mod", "neg", "pow", "getitem"),
            *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_"),
        )
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_max", "sym_min", "sym_not", "sym_float", "sym_int", "sym_ite", "sym_sum")
        if hasattr(torch, name)
    },
}
FACTORIES = frozenset({"zeros", "ones", "full", "arange", "eye", "linspace", "scalar_tensor", "tril_indices"}) | {
    "triu_indices",
    "hann_window",
    "hamming_window",
}
"""Operators without a tensor argument: they make a constant tensor."""
_INTERNAL = (
    *("_softmax", "_log_softmax", "_safe_softmax", "_native_batch_norm_legit", "_to_copy", "_weight_norm", "_conj"),
    *("_adaptive_avg_pool", "_scaled_dot_product", "_embedding_bag", "_cdist_forward", "_pdist_forward", "_fft_"),
    *("_upsample", "_linalg_", "_trilinear", "_unique2", "_assert", "_local_scalar_dense", "_native_multi_head"),
    *("_transformer_encoder_layer_fwd", "_convolution", "_prelu_kernel", "_shape_as_tensor", "_reshape_alias"),
    *("_fused_rms_norm", "_euclidean_dist", "_lu_with_info", "_batch_norm_impl_index", "_padded_dense"),
)
"""Beginnings of the names of torch's internal operators that a program may contain. Others do not check their
arguments."""
_EXCLUDED = ("empty", "resize", "set_", "from_file", "unsafe", "sparse", "quantize", "mkldnn", "pin_memory", "cudnn")
"""Parts of names of operators that give uncertain values, do not check their arguments, or make other tensors."""


def resolve_operator(target: str) -> Callable[..., Any]:
    """The function with this name. Raises SwampError unless it is a pure function of tensors and sizes.

    The check is needed because the name may come from a file, which must not be able to call other functions.
    """
    if target in _ON_SIZES:
        return _ON_SIZES[target]
    *namespace, name, overload = target.split(".") if "." in target else (target, "")
    packet = getattr(getattr(torch.ops, namespace[0] if namespace else "aten"), name, None)
    function: Any = getattr(packet, overload, None) if packet is not None and overload else None
    if namespace not in ([], ["prims"]) or not _is_pure(name, function):
        raise SwampError(
            f"the program asks for the operation {target!r}, which this torch ({torch.__version__}) does not have as a "
            "function of tensors. Export again, or update torch."
        )
    return function


@cache
def _defaults(target: str) -> dict[str, Any]:
    """Parameter of an operator of torch -> its default; None for one without a default."""
    return {one.name: one.default_value for one in cast(Any, resolve_operator(target))._schema.arguments}


def arguments_of(target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter of an operator of torch -> its argument in a call, or its default; in the order of the schema."""
    defaults = _defaults(target)
    return {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}


def is_random(target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator gives other results in each call. With dropout inside, only if the dropout is active."""
    function = resolve_operator(target)
    if torch.Tag.nondeterministic_seeded not in getattr(function, "tags", ()):
        return False
    given = arguments_of(target, args, kwargs)
    if "training" in given:
        return bool(given["training"])
    if "train" in given:
        return bool(given["train"]) and given.get("dropout", given.get("p", 0)) != 0
    return given.get("dropout_p") != 0


def _is_pure(name: str, function: Any) -> bool:
    schema: Any = getattr(function, "_schema", None)
    if schema is None or schema.is_mutable or not schema.returns:
        return False
    internal = name.startswith("_") and not name.startswith(_INTERNAL)
    makes = name in FACTORIES or any("Tensor" in str(argument.type) for argument in schema.arguments)
    return makes and not internal and not any(part in name.removeprefix("fake_quantize") for part in _EXCLUDED)
