"""Validate the fields of option dataclasses: declared types, finite numbers, integers of at most 64 bits."""

import math
import numbers
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from functools import cache
from html import escape
from typing import Any, Literal, cast, get_args, get_origin

from swamp.errors import SwampError, unknown

_MOST = 2**63
_LARGEST = 3.4e38
"""A larger number is infinite in float32, the arithmetic of the weights."""
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

RENAMED = {
    "accumulate": "grad_accum_steps",
    "after_rewind": "lr_after_rewind",
    "alpha": "prune_fraction",
    "broken": "on_divergence",
    "floor": "min_per_layer",
    "fraction": "drop_fraction",
    "fresh_batchnorm": "reset_batchnorm",
    "interval": "update_interval",
    "keep": "keep_checkpoints",
    "output": "prune_output_layer",
    "path_every": "trajectory_every",
    "repeats": "schedule_repeats",
    "tail": "swa_fraction",
    "tail_cycles": "swa_cycles",
    "tail_lr": "swa_lr",
    "until": "dst_stop",
}
"""Earlier name of a field -> its name now, which messages on unknown options suggest."""


def check_fields(options: object) -> None:
    """Raise SwampError, naming the field, for a value of another type than declared, or an unusable number.

    Values from Python may have any type, and NaN passes every later comparison.
    """
    for name, hint in _hints(type(options)).items():
        _check(name, hint, getattr(options, name))


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    _checked_names.update(field.name for field in fields(kind))
    return {field.name: hints[field.name] for field in fields(kind)}


_checked_names: set[str] = set()
"""Fields of all dataclasses that `check_fields` has checked in this process."""


def with_option_names(message: str) -> str:
    """The message with command-line options, such as --swa-lr, in place of the names of checked fields.

    A name of one word, such as `cycles`, may also be an ordinary word of the sentence. It is replaced only in
    "cycles=2" and at the start of "cycles must ...".
    """

    def option(match: re.Match[str]) -> str:
        name = match[0]
        following = message[match.end() :]
        is_name = "_" in name or following.startswith("=") or (not match.start() and following.startswith(" must"))
        return f"--{name.replace('_', '-')}" if name in _checked_names and is_name else name

    return re.sub(r"(?<![\w.$/'\"-])[a-z]+(_[a-z]+)*(?![\w./'\"-]\w|_)", option, message)


def _check(name: str, hint: Any, value: Any) -> None:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in inner:
            raise unknown(name, str(value), inner)
    elif origin in (typing.Union, types.UnionType):
        if value is not None:
            _check(name, next(one for one in inner if one is not type(None)), value)
    elif origin is tuple:
        _check_each(name, inner[0], value)
    elif not _fits(hint, value):
        raise _wrong(name, _KINDS.get(hint) or f"a {hint.__name__}", value)
    else:
        _check_size(name, hint, value)


def _check_each(name: str, hint: Any, values: Any) -> None:
    if not isinstance(values, list | tuple):
        raise _wrong(name, f"a sequence, each item {_KINDS.get(hint, 'a value')}", values)
    for value in cast("Sequence[Any]", values):
        _check(name, hint, value)


def _fits(hint: Any, value: Any) -> bool:
    if hint in (int, float):
        # numpy's numbers included; bool excluded.
        return type(value) is not bool and isinstance(value, numbers.Integral if hint is int else numbers.Real)
    return isinstance(value, hint)


def _check_size(name: str, hint: Any, value: Any) -> None:
    if hint is int and not -_MOST <= value < _MOST:
        raise _wrong(name, "a whole number of at most 64 bits", value)
    if hint is float and not abs(value) <= _LARGEST:
        raise _wrong(name, "a finite number" if _infinite(value) else "a number in the range of float32", value)
    if hint is str and "\0" in str(value):
        raise _wrong(name, "text without zero bytes", value)


def _infinite(value: Any) -> bool:
    # math.isfinite would overflow for large integers.
    return not isinstance(value, int) and not math.isfinite(value)


def _wrong(name: str, expected: str, value: Any) -> SwampError:
    given = repr(value)
    return SwampError(f"{name} must be {expected}, got {given if len(given) < 100 else given[:80] + '...'}.")


def short_repr(value: Any) -> str:
    """`Name(field=value, ...)` with the fields of a dataclass that differ from their defaults."""
    changed = ", ".join(f"{one.name}={getattr(value, one.name)!r}" for one in _changed(value))
    return f"{type(value).__name__}({changed})"


def html_table(value: Any) -> str:
    """A table of all fields of a dataclass, for notebooks; those that differ from their defaults are bold."""
    changed = {one.name for one in _changed(value)}
    rows: list[str] = []
    for one in fields(value):
        text = escape(repr(getattr(value, one.name)))
        rows.append(f"<tr><td>{one.name}</td><td>{f'<b>{text}</b>' if one.name in changed else text}</td></tr>")
    return f"<b>{type(value).__name__}</b><table>{''.join(rows)}</table>"


def _changed(value: Any) -> "list[Field[Any]]":
    def default(one: "Field[Any]") -> Any:
        return one.default if one.default_factory is MISSING else one.default_factory()

    return [one for one in fields(value) if getattr(value, one.name) != default(one)]
