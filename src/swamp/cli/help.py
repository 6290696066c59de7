"""Help of a command with many options: its description, its examples and the options that are used most."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from rich.table import Table
from rich.text import Text

from swamp.cli.session import Out

_LONGEST = 8
"""Characters of a default that is shown with all its digits."""
OptionGroups = Mapping[str, Sequence[str]]
"""Heading -> fields of the dataclass (or of the dataclasses in it) whose options stand under this heading."""


@dataclass(frozen=True)
class CommandOption:
    """One option of a command, as its help and the reference show it."""

    field: str
    group: str
    """Name of the dataclass that has the field."""
    name: str
    """`--like-this`; `LIKE_THIS` for a value without a name."""
    kind: str
    """INT, TEXT, a|b, `INT ...`; empty for a switch."""
    default: str
    """Empty if there is none, or if the text states it."""
    text: str

    @property
    def usage(self) -> str:
        """The name with the kind of its value."""
        return f"{self.name} {self.kind}".rstrip()


def print_short_help(command: str, given: Any, shown: OptionGroups) -> None:
    """Print the help of a command that takes a recipe: the docstring of `given`, and the options of `shown`.

    The defaults that are printed are the values of `given`. command: with its argument, if that is no recipe.
    """
    options = {option.field: option for option in command_options(given)}
    usage = command if command.count(" ") > 1 else f"{command} [RECIPE]"
    Out.print(f"usage: {usage} [OPTIONS]\n\n{inspect.getdoc(given)}", soft_wrap=True)
    width = max(len(options[name].usage) for names in shown.values() for name in names)
    for heading, names in shown.items():
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(width=width + 2, no_wrap=True)
        table.add_column()
        for name in names:
            option = options[name]
            text = f"{option.text} (default: {option.default})" if option.default else option.text
            table.add_row(Text(f"  {option.usage}", style="bold"), Text(text))
        Out.print(f"\n{heading}", style="bold")
        Out.print(table)
    hidden = len(options) - sum(map(len, shown.values()))
    Out.print(f"\n{hidden} more options: --help-all shows all.")


def command_options(given: Any) -> Iterator[CommandOption]:
    """The options of a dataclass, or of an instance, which has the defaults; those of nested dataclasses too."""
    group = cast("type[Any]", given if isinstance(given, type) else type(given))
    texts, kinds = _field_docstrings(group), get_type_hints(group)
    marks = {name: str(hint) for name, hint in get_type_hints(group, include_extras=True).items()}
    for field in fields(group):
        value: Any = field.default if isinstance(given, type) else getattr(given, field.name)
        if is_dataclass(value):
            yield from command_options(value)
            continue
        text = texts.get(field.name, "")
        named = "Positional" not in marks[field.name]
        yield CommandOption(
            field.name,
            group.__name__,
            f"--{field.name.replace('_', '-')}" if named else field.name.upper(),
            _kind(kinds[field.name]),
            "" if "(default" in text else _written(value),
            text,
        )


def _written(default: Any) -> str:
    if default is False or default is MISSING or default in (None, "", ()):
        return ""
    if isinstance(default, tuple):
        return " ".join(map(_written, cast("tuple[Any, ...]", default)))
    return _readable(default) if isinstance(default, float) else str(default)


def _readable(number: float) -> str:
    """A number as help shows it: with three digits where it has many, such as 1/3."""
    text = str(number)
    return text if len(text) <= _LONGEST else f"{number:.3g}"


def readable_defaults() -> Any:
    """Context in which the help of tyro, --help-all, shows numbers as this module does."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    def numbers(about: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
        if cast(Any, about).type is not float:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="FLOAT",
            instance_from_str=lambda given: float(given[0]),
            is_instance=lambda value: isinstance(value, int | float),
            str_from_instance=lambda value: [_readable(value)],
        )

    registry: Any = ConstructorRegistry()
    registry.primitive_rule(numbers)
    return registry


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
