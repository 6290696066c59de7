"""Help of a command with many options: its description, its examples and the options that are used most."""

import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from rich.table import Table
from rich.text import Text

from swamp.cli.session import Out

OptionGroups = Mapping[str, Sequence[str]]
"""Heading -> fields of the dataclass (or of the dataclasses in it) whose options stand under this heading."""


def print_short_help(command: str, given: Any, shown: OptionGroups) -> None:
    """Print the help of a command that takes a recipe: the docstring of `given`, and the options of `shown`.

    The defaults that are printed are the values of `given`.
    """
    options = _options(given)
    Out.print(
        f"usage: {command} [RECIPE] [OPTIONS]\n\n{inspect.getdoc(given)}", markup=False, highlight=False, soft_wrap=True
    )
    width = max(len(options[name][0]) for names in shown.values() for name in names)
    for heading, names in shown.items():
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(width=width + 2, no_wrap=True)
        table.add_column()
        for name in names:
            option, text = options[name]
            table.add_row(Text(f"  {option}", style="bold"), Text(text))
        Out.print(f"\n[bold]{heading}[/bold]")
        Out.print(table, highlight=False)
    hidden = len(options) - sum(map(len, shown.values()))
    Out.print(f"\n{hidden} more options: --help-all shows all.", highlight=False)


def _options(given: Any) -> dict[str, tuple[str, str]]:
    """Field -> its option with the kind of value, and its text; those of nested dataclasses too."""
    found: dict[str, tuple[str, str]] = {}
    group = cast("type[Any]", type(given))
    texts, kinds = _field_docstrings(group), get_type_hints(group)
    for field in fields(group):
        value: Any = getattr(given, field.name)
        if is_dataclass(value):
            found |= _options(value)
            continue
        option = f"--{field.name.replace('_', '-')} {_kind(kinds[field.name])}".rstrip()
        text = texts.get(field.name, "")
        if value is not False and value not in (None, "", ()) and "(default" not in text:
            default = " ".join(map(str, cast("tuple[Any, ...]", value))) if isinstance(value, tuple) else value
            text = f"{text} (default: {default})"
        found[field.name] = option, text
    return found


def _field_docstrings(kind: type) -> dict[str, str]:
    """Field -> the string below it in the source of its dataclass, as one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def _kind(kind: Any) -> str:
    """The kind of value of an option: INT, FLOAT, a|b, `INT ...` for several; nothing for a switch."""
    if kind is bool:
        return ""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return f"{_kind(get_args(kind)[0])} ..."
    if get_args(kind):  # a union with None
        return _kind(get_args(kind)[0])
    return "TEXT" if kind is str else kind.__name__.upper()
