"""Arguments of the public calls: unknown names and wrong types are refused by the annotations, with what to write."""

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from typing import Any, ParamSpec, TypeVar, cast

from swamp.errors import SwampError
from swamp.fields import RENAMED, check_value

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")

_SYNONYMS = {
    "batchsize": "batch_size",
    "bs": "batch_size",
    "callback": "on_cycle",
    "callbacks": "on_cycle",
    "dataset": "task",
    "directory": "out",
    "folder": "out",
    "learning_rate": "lr",
    "n_particles": "particles",
    "net": "model",
    "network": "model",
    "num_epochs": "epochs",
    "num_particles": "particles",
    "n_epochs": "epochs",
    "opt": "optimizer",
    "output": "out",
    "pruning_ratio": "sparsity",
    "amount": "sparsity",
    "random_state": "seed",
    "scheduler": "schedule",
    "verbose": "progress",
    "wd": "weight_decay",
    "warmup_epochs": "warmup",
}
"""Names of the same thing in other libraries."""


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function so that each call is checked against its annotations before the function runs.

    Raises SwampError for a name that is no parameter, with the nearest one; for a missing or superfluous argument; and
    for a value of another type, with what to write instead.

    Examples:
        >>> @checked
        ... def halve(number: int) -> float:
        ...     return number / 2
        >>> halve("3")
        Traceback (most recent call last):
        swamp.errors.SwampError: number must be a whole number, got '3'. Write number=3.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        _check_call(function, args, kwargs)
        return function(*args, **kwargs)

    return call


def named_fields(kind: type[_T]) -> type[_T]:
    """Decorate a dataclass so that its constructor refuses unknown and missing names with SwampError.

    For an unknown name the message has the nearest one.
    """
    every = [one for one in fields(cast(Any, kind)) if one.init]
    known = [one.name for one in every]
    needed = [one.name for one in every if one.default is MISSING and one.default_factory is MISSING]
    made: Any = kind.__init__

    @functools.wraps(made)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known:
                raise _no_such(f"swamp.{kind.__name__}", name, known)
        if len(args) > len(known):
            raise SwampError(f"swamp.{kind.__name__} takes at most {len(known)} arguments, got {len(args)}.")
        if missing := [name for name in needed if name not in (*known[: len(args)], *kwargs)]:
            raise SwampError(f"swamp.{kind.__name__} needs {' and '.join(missing)}.")
        made(self, *args, **kwargs)

    kind.__init__ = construct
    return kind


def _check_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    signature, hints, options = _expected(function)
    name = function.__name__
    positional = [one for one in signature.parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    usual = [one.name for one in positional if one.name not in ("self", "cls")]
    if len(args) > len(positional):
        raise SwampError(
            f"{name} takes {len(usual)} arguments by position ({', '.join(usual)}), got "
            f"{len(usual) + len(args) - len(positional)}. Give the others by name."
        )
    given = {one.name: value for one, value in zip(positional, args, strict=False)}
    for key, value in kwargs.items():
        if key in given:
            raise SwampError(f"{name} got {key} twice, by position and by name.")
        if key not in hints and not _takes_any_name(signature, options):
            raise _no_such(name, key, hints)
        given[key] = value
    missing = [key for key, one in signature.parameters.items() if one.default is one.empty and key not in given]
    if missing := [key for key in missing if key in hints and key not in options]:
        raise SwampError(f"{name} needs {' and '.join(missing)}: {name}({', '.join(usual)}, ...)")
    for key, value in given.items():
        # What Plan checks itself is left to it, so that one message stands for both ways.
        if key in hints and key not in options:
            check_value(key, hints[key], value)


def _takes_any_name(signature: inspect.Signature, options: Iterable[str]) -> bool:
    """Whether a function passes on other keyword arguments, and leaves their names to what it calls."""
    return not [*options] and any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())


@functools.cache
def _expected(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any], frozenset[str]]:
    """The signature, the hint of each argument, and the names that come from a TypedDict of keyword arguments."""
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function)
    hints.pop("return", None)
    options: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            unpacked = typing.get_args(hints.pop(parameter.name))
            options = typing.get_type_hints(unpacked[0]) if unpacked else {}
    return signature, hints | options, frozenset(options)


def _no_such(what: str, name: str, known: Iterable[str]) -> SwampError:
    names = [*known]
    other = next((table[name] for table in (RENAMED, _SYNONYMS) if table.get(name) in names), None)
    near = [other] if other else difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"It has: {', '.join(names)}."
    return SwampError(f"{what} has no argument {name!r}. {hint}")
