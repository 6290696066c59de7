"""What a function or module of the user computes, as a short text: its name, and a digest of its code and settings."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp.files import digest

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MOST_ELEMENTS = 10_000
"""Elements of the largest tensor that counts as a setting; larger ones are data."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def function_text(function: Any) -> str:
    """Name and digest of a function or callable object: of its code, its defaults, and the values that it holds.

    Not included: functions that it calls by a global name, and code of installed packages, which has a name only.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    # Buffers of a loss are settings, such as weights of classes.
    buffers = tuple(function.buffers()) if isinstance(function, nn.Module) else ()
    return f"{name} {_short([_parts(function, ()), _parts(buffers, ())])}"


def module_text(module: nn.Module) -> str:
    """Class, settings and digest of one module, without its weights and submodules.

    The digest is of the attributes without an underscore, such as the activation function of a transformer layer, and
    of the methods that are no code of an installed package.
    """
    try:
        shown = _ADDRESS.sub("", module.extra_repr())
    except Exception:  # code of the user may raise anything
        shown = ""
    return f"{type(module).__qualname__}({' '.join(shown.split())}) {_short(_module_parts(module, ()))}"


def modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of a model and of each of its modules."""
    return list(cast(Any, model).named_modules())


def _short(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def _parts(value: Any, outer: tuple[int, ...]) -> Any:
    """Nested lists of text for a value that a function holds. outer: ids of the values that contain it."""
    if id(value) in outer:
        return "itself"
    inner = (*outer, id(value))
    match value:
        case CodeType():
            return _code_parts(value, None, inner)
        case FunctionType():
            return _function_parts(value, inner)
        case MethodType():
            return [_parts(value.__func__, inner), _parts(value.__self__, inner)]
        case functools.partial():
            given = cast("functools.partial[Any]", value)
            return [_parts(one, inner) for one in (given.func, given.args, *sorted(given.keywords.items()))]
        case tuple():
            return [_parts(one, inner) for one in cast("tuple[Any, ...]", value)]
        case nn.Module():
            return [[name, _module_parts(module, inner)] for name, module in modules_of(value)]
        case _:
            return _value_parts(value, inner)


def _value_parts(value: Any, outer: tuple[int, ...]) -> Any:
    if isinstance(value, Tensor):
        small = value.numel() <= _MOST_ELEMENTS and value.layout == torch.strided and not value.is_meta
        return digest({"": value}) if small else [str(value.dtype), *value.shape]
    if isinstance(value, frozenset):
        return sorted(repr(one) for one in cast("frozenset[Any]", value))
    if isinstance(value, _PLAIN):
        return repr(value)
    # Classes, and functions without code of Python.
    named = getattr(value, "__qualname__", None)
    return named or [type(value).__qualname__, *_held(value, outer)]


def _function_parts(function: FunctionType, outer: tuple[int, ...]) -> Any:
    own = [function.__module__] if _installed(function) else _code_parts(function.__code__, function.__doc__, outer)
    defaults = *(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())
    return [function.__qualname__, own, _parts(defaults, outer), _cells(function, outer)]


def _code_parts(code: CodeType, docstring: str | None, outer: tuple[int, ...]) -> Any:
    constants = [_parts(one, outer) for one in code.co_consts if one is None or one != docstring]
    return [code.co_code.hex(), list(code.co_names), constants]


def _cells(function: FunctionType, outer: tuple[int, ...]) -> list[Any]:
    """The values that a function takes from the function in which it was defined."""
    found: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            found.append(_parts(cell.cell_contents, outer))
        except ValueError:  # the variable has no value yet
            found.append("empty")
    return found


def _held(value: Any, outer: tuple[int, ...]) -> list[Any]:
    """Attributes of an object that are plain values, functions or small tensors; methods of its class."""
    attributes: Mapping[str, Any] = getattr(value, "__dict__", {})
    kinds = (*_PLAIN, tuple, FunctionType, MethodType, functools.partial, Tensor)
    # `training` is the mode, which a run sets by itself.
    settings = [
        [name, _parts(held, outer)]
        for name, held in sorted(attributes.items())
        if not name.startswith("_") and name != "training" and isinstance(held, kinds)
    ]
    return [settings, _methods(value, outer)]


def _methods(value: Any, outer: tuple[int, ...]) -> list[Any]:
    """The methods of an object that are no code of an installed package."""
    return [
        _parts(method, outer)
        for base in type(value).__mro__
        for name, method in sorted(vars(base).items())
        if isinstance(method, FunctionType)
        if (name == "__call__" or not name.startswith("__")) and not _installed(method)
    ]


def _module_parts(module: nn.Module, outer: tuple[int, ...]) -> Any:
    return [type(module).__qualname__, *_held(module, (*outer, id(module)))]


def _installed(function: FunctionType) -> bool:
    """Whether a function is code of an installed package, which changes by its version only."""
    package = (function.__module__ or "").partition(".")[0]
    file = function.__code__.co_filename
    return package in ("swamp", "torch") or "site-packages" in file or "dist-packages" in file
