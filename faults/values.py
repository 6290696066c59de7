"""Values for fields of dataclasses: valid, at the limits, extreme, of another type. New fields are included."""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from hypothesis import strategies as st

WHOLE = [0, 1, 2, 3, 5, 10, 100, -1, -7, 10_000, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, -(10**30)]
REAL = [0.0, -0.0, 0.5, 1.0, 0.1, 0.9, 0.99, 2.0, 30.0, -1.0, 1e-12, 5e-324, 1e-300, 1e300, 1.7976931348623157e308]
REAL += [float("nan"), float("inf"), float("-inf"), -1e300, 1 - 2**-53, 1 + 2**-52, 2**-24]
TEXT = [
    "",
    " ",
    "x",
    "auto",
    "none",
    "0",
    "-1",
    "nan",
    "1e999",
    "x" * 5000,
    "é漢字🎉",
    "a\nb",
    "a\tb",
    "\x1b[31m",
    "\0",
]
TEXT += [
    "[bold red]",
    "[/]",
    "../..",
    "./",
    "/",
    "~",
    "*",
    "[",
    "%s{}{0}",
    "</script>",
    "-",
    "--",
    "\ud800",
    "ⅷ",
    "\u202e",
]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], {"a": {"b": []}}, "text", 3.7, 7, [None], "1", ["a", 1], 10**400]

Pools = Mapping[str, Sequence[Any]]
"""Field name -> meaningful values, such as the names of methods."""


def field_types(kind: type[Any]) -> dict[str, Any]:
    """Field -> type, without annotations."""
    hints = typing.get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}


def flat_fields(kind: type[Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type, for all fields of a dataclass and of nested dataclasses."""
    found: dict[str, Any] = {}
    for name, hint in field_types(kind).items():
        if is_dataclass(hint):
            found.update(flat_fields(typing.cast(type[Any], hint), f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = hint
    return found


def typed(hint: Any, pool: Sequence[Any] = ()) -> st.SearchStrategy[Any]:
    """Values of a type: from the pool if there is one, at the limits, and any."""
    own = [st.sampled_from(list(pool))] * 2 if pool else []
    return st.one_of(*own, _typed(hint, pool))


def _typed(hint: Any, pool: Sequence[Any]) -> st.SearchStrategy[Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(typed(one, pool) for one in inner if one is not type(None)), st.none())
    if origin in (tuple, list):
        return st.lists(typed(inner[0], pool), max_size=4) if inner else st.just([])
    if origin is dict:
        return st.dictionaries(st.sampled_from(TEXT), typed(inner[1], pool), max_size=2)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.sampled_from(WHOLE) | st.integers(-5, 200),
        float: st.sampled_from(REAL) | st.floats(0, 1) | st.floats(),
        str: st.sampled_from(TEXT) | st.text(max_size=12),
        Path: st.sampled_from(TEXT),
    }
    return simple.get(hint, st.sampled_from(OTHERS))


def wrong() -> st.SearchStrategy[Any]:
    """A value of an arbitrary type."""
    return st.sampled_from(OTHERS)


def any_value(hint: Any, pool: Sequence[Any] = ()) -> st.SearchStrategy[Any]:
    """Mostly values of the type; one in five of another type."""
    return st.integers(0, 4).flatmap(lambda n: wrong() if n == 3 else typed(hint, pool))


def words(value: Any) -> list[str]:
    """The words for a value on a command line."""
    if isinstance(value, list | tuple):
        return [word for one in typing.cast("list[Any]", value) for word in words(one)]
    # A command line cannot contain a zero byte: the system ends the word there.
    return [str(value).replace("\0", "").replace("\ud800", "\udcff")]


def flags(kind: type[Any], pools: Pools) -> st.SearchStrategy[list[str]]:
    """Words for one field of a dataclass on a command line: its flag and any number of values."""

    def one(item: tuple[str, Any]) -> st.SearchStrategy[list[str]]:
        name, hint = item
        last = name.rpartition(".")[2]
        flag = f"--{last.replace('_', '-')}"
        if hint is bool:
            return st.sampled_from([[flag], [f"--no-{flag[2:]}"], [flag, "x"]])
        values = any_value(hint, pools.get(name, pools.get(last, ()))).map(words)
        return values.map(lambda given: [flag, *given])

    return st.sampled_from(list(flat_fields(kind).items())).flatmap(one)
