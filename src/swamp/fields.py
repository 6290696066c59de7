"""Validate the fields of option dataclasses: declared types, finite numbers, integers of at most 64 bits."""

import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from decimal import Decimal
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

from swamp.errors import SwampError, unknown

_MOST = 2**63
_LARGEST = 3.4e38
"""A larger number is infinite in float32, the arithmetic of the weights."""
_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Mapping: "a mapping",
}

RENAMED = {
    "accumulate": "grad_accum_steps",
    "after_rewind": "lr_after_rewind",
    "alpha": "prune_fraction",
    "broken": "on_divergence",
    "floor": "min_per_layer",
    "fraction": "drop_fraction",
    "fresh_batchnorm": "reset_batchnorm",
    "interval": "update_interval",
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

    Values from Python may have any type, and NaN passes every later comparison. A single value of a field that takes
    several, such as prune_fraction=0.5, becomes a tuple, and so does a list.
    """
    hints = _hints(type(options))
    _checked_names.update(hints)
    for name, hint in hints.items():
        given = getattr(options, name)
        value = _as_tuple(given) if get_origin(hint) is tuple else given
        check_value(name, hint, value)
        if value is not given:
            object.__setattr__(options, name, value)  # the dataclass may be frozen


def check_at_least(options: object, least: int, *names: str) -> None:
    """Raise SwampError for the first of these fields whose value is below `least`; None is no value."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise SwampError(f"{name} must be {least} or more, got {value}.")


def with_tuples(kind: type[Any], values: Any) -> Any:
    """Plain values for a dataclass, from a file: a single value of a field that takes several becomes a tuple."""
    if not isinstance(values, dict):
        return values
    hints = _hints(kind)
    found: dict[Any, Any] = {}
    for name, value in cast("dict[Any, Any]", values).items():
        hint = hints.get(name)
        if get_origin(hint) is tuple:
            found[name] = _as_tuple(value)
        else:
            found[name] = with_tuples(hint, value) if isinstance(hint, type) and is_dataclass(hint) else value
    return found


def _as_tuple(value: Any) -> Any:
    """A list as a tuple, and a single value as a tuple of one; other collections as they are."""
    if isinstance(value, list | range):
        return tuple(cast("Sequence[Any]", value))
    single = isinstance(value, str | bytes) or (value is not None and not isinstance(value, Iterable))
    return (cast(Any, value),) if single else cast(Any, value)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


_PREDICATES = (" must", " has no effect")
"""What follows the name of an option at the start of a message."""
_checked_names: set[str] = set()
"""Fields of all dataclasses that `check_fields` has checked in this process."""


def with_option_names(message: str) -> str:
    """The message with command-line options, such as --swa-lr, in place of the names of checked fields.

    Messages are written with the names and values of Python: swa_lr=0.5, swa=False, backend="threads". A name of one
    word, such as `cycles`, may also be an ordinary word of the sentence. It is replaced only in "cycles=2" and at the
    start of "cycles must ..." or "cycles has no effect ...".
    """

    def option(match: re.Match[str]) -> str:
        name = match[0]
        following = message[match.end() :]
        is_name = "_" in name or following.startswith("=") or (not match.start() and following.startswith(_PREDICATES))
        return f"--{name.replace('_', '-')}" if name in _checked_names and is_name else name

    named = re.sub(r"(?<![\w.$/'\"-])[a-z]+(_[a-z]+)*(?![\w./'\"-]\w|_)", option, message)
    return re.sub(r"--([a-z-]+)=(False|True|\"[^\"]*\"|\([^()]*\))", _as_option, named)


def _as_option(match: re.Match[str]) -> str:
    """An option with its value as a shell takes it, from `name=value` as Python does."""
    name, value = match[1], match[2]
    if value in ("False", "True"):
        return f"--no-{name}" if value == "False" else f"--{name}"
    return f"--{name} {' '.join(value.strip('()').replace(',', ' ').split())}".replace('"', "")


def check_value(name: str, hint: Any, value: Any) -> None:
    """Raise SwampError, with what to write instead, unless `value` has the type `hint`.

    Hints that name no class, a literal, a union, a sequence, a mapping or a callable are not checked.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        if not isinstance(value, Hashable) or value not in inner:
            raise unknown(name, value if isinstance(value, str) else repr(value), inner)
    elif origin in (typing.Union, types.UnionType):
        _check_union(name, hint, inner, value)
    elif origin in (tuple, Sequence):
        if isinstance(value, str) or not isinstance(value, list | tuple | range):
            raise _wrong(name, hint, value)
        for part in cast("Sequence[Any]", value):
            check_value(name, inner[0], part)
    elif not _fits(origin or hint, value):
        raise _wrong(name, hint, value)
    else:
        _check_size(name, hint, value)


def _check_union(name: str, hint: Any, kinds: Sequence[Any], value: Any) -> None:
    if value is None and type(None) in kinds:
        return
    errors: list[SwampError] = []
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            check_value(name, kind, value)
            return
        except SwampError as error:
            errors.append(error)
            if isinstance(value, list | tuple) and get_origin(kind) in (tuple, Sequence):
                raise  # says which item is wrong
    raise errors[0] if len(errors) == 1 else _wrong(name, hint, value)


def _fits(hint: Any, value: Any) -> bool:
    if hint in (int, float):
        # numpy's numbers included; bool excluded.
        return type(value) is not bool and isinstance(value, numbers.Integral if hint is int else numbers.Real)
    if hint is Callable:
        return callable(value)
    if getattr(hint, "_is_protocol", False):
        return not isinstance(value, type) and all(hasattr(value, method) for method in _methods(hint))
    # In Python 3.11 Any is a class, which no value is an instance of.
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _check_size(name: str, hint: Any, value: Any) -> None:
    if hint is int and not -_MOST <= value < _MOST:
        raise _stated(name, "a whole number of at most 64 bits", value)
    if hint is float and not abs(value) <= _LARGEST:
        raise _stated(name, "a finite number" if _infinite(value) else "a number in the range of float32", value)
    if hint is str and "\0" in str(value):
        raise _stated(name, "text without zero bytes", value)


def _infinite(value: Any) -> bool:
    # math.isfinite would overflow for large integers.
    return not isinstance(value, int) and not math.isfinite(value)


def _methods(protocol: Any) -> list[str]:
    return [name for name in cast("dict[str, Any]", vars(protocol)) if not name.startswith("_")]


def _wrong(name: str, hint: Any, value: Any) -> SwampError:
    return _stated(name, _expected(hint), value, _advice(name, hint, value))


def _stated(name: str, expected: str, value: Any, advice: str = "") -> SwampError:
    return SwampError(f"{name} must be {expected}, got {_shown(value)}.{advice}")


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value):
        return f"a {type(value).__name__}"
    # A repr may be a picture of a whole model or data set.
    if not isinstance(value, str | bytes | numbers.Number | list | tuple | None):
        return f"a {type(value).__name__}"
    given = repr(cast(object, value))
    return given if len(given) < 100 else given[:80] + "..."


def _expected(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(dict.fromkeys(_expected(one) for one in inner if one is not type(None)))
    if origin is tuple:
        return f"{_expected(inner[0])}, or a sequence of such values"
    if origin is Sequence:
        return f"a sequence, each item {_expected(inner[0])}"
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(map(str, inner))
    if (origin or hint) is Callable:
        return "a function"
    kind = origin or hint
    if getattr(kind, "_is_protocol", False):
        return f"an object with the method {' and '.join(_methods(kind))}"
    if kind is Path:
        return "a path"
    return _KINDS.get(kind) or f"a {_WRITTEN.get(kind.__name__, kind.__name__)}"


_WRITTEN = {"Module": "torch.nn.Module"} | {
    name: f"swamp.{name}" for name in ("Task", "Training", "Plan", "Mask", "Ticket", "Scope", "Seed")
}
_HOW = {
    "Task": "swamp.Task.of(train=..., test=...)",
    "Mask": "swamp.Mask.from_zeros(model)",
    "Ticket": "swamp.Ticket(model.state_dict(), steps=0)",
}
"""Class -> how one is made from what users have at hand."""


def _advice(name: str, hint: Any, value: Any) -> str:
    """What to write instead; empty where the message says it all."""
    kinds = [one for one in (get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,))]
    classes = [one for one in kinds if isinstance(one, type)]
    if isinstance(value, type) and any(issubclass(value, one) for one in classes if _is_plain(one)):
        return f" Create one: {name}={value.__name__}(...)"
    if isinstance(value, type) and any(getattr(one, "_is_protocol", False) for one in classes):
        return f" Create one, {value.__name__}(model, task), or give its name."
    if isinstance(value, str) and {int, float} & set(classes):
        return _number_advice(name, value)
    if type(value) is float and int in classes and float not in classes and value.is_integer():
        return f" Write {name}={int(value)}."
    for one in classes:
        if isinstance(value, Mapping) and one.__name__ in ("Training", "Plan", "Dynamic", "Scope"):
            return f" Write {name}=swamp.{one.__name__}(**{{...}})."
        if one.__name__ in _HOW:
            return f" Make one with {_HOW[one.__name__]}."
    return ""


def _number_advice(name: str, text: str) -> str:
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        return ""
    # Decimal arithmetic: 90 % is 0.9, not 0.9000000000000001.
    written = Decimal(text.strip().removesuffix("%").strip()) / 100 if text.strip().endswith("%") else value
    return f" Write {name}={float(written):g}."


def _is_plain(kind: type) -> bool:
    return not getattr(kind, "_is_protocol", False) and kind not in (int, float, str, bool)


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


def changed_fields(value: Any) -> list[str]:
    """Names of the fields of a dataclass that differ from their defaults."""
    return [one.name for one in _changed(value)]


def _changed(value: Any) -> "list[Field[Any]]":
    def default(one: "Field[Any]") -> Any:
        return one.default if one.default_factory is MISSING else one.default_factory()

    return [one for one in fields(value) if getattr(value, one.name) != default(one)]
