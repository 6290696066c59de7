"""Help of a command: description, examples and options. A command with many options shows the most used ones."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from rich.table import Table
from rich.text import Text

from swamp.cli.session import Out

_LONGEST = 8
"""Characters of a default that is shown with all its digits."""
_WIDEST = 34
"""Characters of an option and the kind of its value that stand on one line."""
OptionGroups = Mapping[str, Sequence[str]]
"""Heading -> fields of the dataclass (or of the dataclasses in it) whose options stand under this heading."""
HEADINGS = {
    "RunConfig": "Task, model and machine",
    "Plan": "Pruning",
    "Dynamic": "Masks that change during training",
    "Transfer": "Transfer",
    "Training": "Training of each particle",
    "DataOptions": "Data",
    "TextOptions": "Text",
    "LabelOptions": "Labels",
    "RunArgs": "Run",
}
"""Dataclass with options of `swamp run` -> the heading of its options."""


@dataclass(frozen=True)
class CommandOption:
    """One option of a command, as its help and the reference show it."""

    field: str
    group: str
    """Name of the dataclass that has the field."""
    name: str
    """`--like-this`; `LIKE_THIS` for a value without a name."""
    kind: str
    """INT, TEXT, a|b, INT|a, `INT ...`; empty for a switch."""
    default: str
    """Empty if there is none, or if the text states it."""
    text: str

    @property
    def short(self) -> str:
        """The short form of the name; empty: there is none."""
        return "-o" if self.name == "--out" else ""

    @property
    def usage(self) -> str:
        """The name with the kind of its value, such as `--seed INT`, `--test-data, --no-test-data` or `RUNS ...`."""
        if not self.name.startswith("--"):
            return f"{self.name} ..." if self.kind.endswith(" ...") else self.name
        if not self.kind and self.default == "on":
            return f"{self.name}, --no-{self.name[2:]}"
        return f"{self.name}{self.short and f', {self.short}'} {self.kind}".rstrip()


def print_help(
    command: str,
    given: Any,
    shown: OptionGroups | None = None,
    *,
    defaults: bool = True,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Print the help of a command: its description with examples, and its options.

    Args:
        command: The command, with its argument if it takes the options of `swamp run` but no recipe.
        given: Dataclass with the options of the command; or an instance of it, whose values are printed as defaults.
        shown: Options to print; without it, all of them.
        defaults: Whether the values of `given` are printed.
        texts: Field -> text in place of its own.
    """
    options = [replace(one, text=(texts or {}).get(one.field, one.text)) for one in command_options(given)]
    arguments = [option for option in options if not option.name.startswith("--")]
    named = [option for option in options if option not in arguments]
    Out.print(f"usage: {usage_of(command, options)}", soft_wrap=True, markup=False)
    for paragraph in (inspect.getdoc(given) or "").split("\n\n"):
        lines = paragraph.splitlines()
        example = lines[0].lstrip().startswith("swamp ")
        text = [f"  {line.strip()}" for line in lines] if example else [" ".join(line.strip() for line in lines)]
        Out.print("", *text, sep="\n", soft_wrap=example, markup=False)
    if shown is None:
        groups = {"Arguments": arguments}
        for option in named:
            groups.setdefault(HEADINGS.get(option.group, "Options"), []).append(option)
    else:
        by_field = {option.field: option for option in options}
        groups = {heading: [by_field[name] for name in names] for heading, names in shown.items()}
    for heading, listed in groups.items():
        if listed:
            _print_options(heading, listed, defaults)
    if shown is not None:
        hidden = len(options) - sum(map(len, groups.values()))
        Out.print(f"\n{hidden} more options: --help-all shows all.")


def usage_of(command: str, options: Sequence[CommandOption]) -> str:
    """One line: the command, its arguments, and whether it has options. command: see `print_help`."""
    recipe = any(option.group == "RunConfig" for option in options) and command.count(" ") == 1
    arguments = [option.usage for option in options if not option.name.startswith("--")]
    rest = ["[OPTIONS]"] if len(arguments) < len(options) else []
    return " ".join([command, *(["[RECIPE]"] if recipe else []), *arguments, *rest])


def _print_options(heading: str, options: Sequence[CommandOption], defaults: bool) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(width=min(max(len(option.usage) for option in options), _WIDEST) + 2, overflow="fold")
    table.add_column()
    for option in options:
        text = f"{option.text} (default: {option.default})" if defaults and option.default else option.text
        table.add_row(Text(f"  {option.usage}", style="bold"), Text(text))
    Out.print(f"\n{heading}", style="bold")
    Out.print(table)


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
            kind := _kind(kinds[field.name]),
            "" if "(default" in text else _written(value),
            text or kind.replace("|", ", "),
        )


def _written(default: Any) -> str:
    if default is True:
        return "on"
    if default is False or default is MISSING or default in (None, "", ()):
        return ""
    if isinstance(default, tuple):
        return " ".join(map(_written, cast("tuple[Any, ...]", default)))
    return _readable(default) if isinstance(default, float) else str(default)


def _readable(number: float) -> str:
    """A number as help shows it: with three digits where it has many, such as 1/3."""
    text = str(number)
    return text if len(text) <= _LONGEST else f"{number:.3g}"


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
    """The kind of value of an option: INT, FLOAT, a|b, INT|a, `INT ...` for several; nothing for a switch."""
    if kind is bool:
        return ""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return f"{_kind(get_args(kind)[0])} ..."
    if get_args(kind):  # a union
        return "|".join(_kind(one) for one in get_args(kind) if one is not NoneType)
    return "TEXT" if kind is str else kind.__name__.upper()
