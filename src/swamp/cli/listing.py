"""swamp list. It reads the registries from the source of the package, as importing them imports torch: seconds."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import tyro
from rich.text import Text

import swamp
from swamp.cli.session import Out, parse, print_json

_Definition = ast.expr | ast.FunctionDef | ast.ClassDef

_What = Literal[
    "recipes", "tasks", "models", "methods", "scores", "allocations", "structures", "backends", "studies", "analyses"
]

_REGISTRIES: dict[_What, tuple[str, str]] = {
    "recipes": ("swamp.recipes", "RECIPES"),
    "tasks": ("swamp.datasets", "TASKS"),
    "models": ("swamp.models", "NETWORKS"),
    "methods": ("swamp.algorithms", "METHODS"),
    "scores": ("swamp.scores", "SCORES"),
    "allocations": ("swamp.masks.allocation", "ALLOCATIONS"),
    "structures": ("swamp.masks.patterns", "STRUCTURES"),
    "backends": ("swamp.backends", "BACKENDS"),
    "studies": ("swamp.recipes", "STUDIES"),
    "analyses": ("swamp.analysis", "ANALYSES"),
}
"""What can be listed -> module and name of its registry, a dict."""

_TIMM = {"timm:NAME": "a model of timm with its own preprocessing (pip install 'swamp[timm]'); images"}


@dataclass(frozen=True)
class ListArgs:
    """List what is available, one line each."""

    what: tyro.conf.Positional[_What]
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""


def list_command(arguments: Sequence[str]) -> None:
    """swamp list recipes|tasks|models|methods|scores|allocations|structures|backends|studies|analyses."""
    given = parse(ListArgs, "swamp list", arguments)
    lines = registry(*_REGISTRIES[given.what]) | (_TIMM if given.what == "models" else {})
    if given.json:
        print_json({given.what: lines})
        return
    default = _text(_definition("swamp.recipes", "DEFAULT")[1]) if given.what == "recipes" else None
    width = max(map(len, lines), default=0)
    for name, summary in lines.items():
        mark = " (default)" if name == default else ""
        Out.print(Text.assemble((f"{name:<{width}}", "bold"), f"  {summary}{mark}"), soft_wrap=True)


def registry(module: str, name: str) -> dict[str, str]:
    """Names and summaries of a registry, read from source: a dict literal of functions, classes, calls or strings.

    The summary is the first line of the docstring, the first argument of the call, or the string.
    """
    module, table = _definition(module, name)
    assert isinstance(table, ast.Dict)
    found: dict[str, str] = {}
    for key, value in zip(table.keys, table.values, strict=True):
        if key is not None:
            found[_text(key)] = _summary(module, value)
        elif isinstance(value, ast.Name):
            found |= registry(module, value.id)
    return found


def _summary(module: str, value: ast.expr) -> str:
    if isinstance(value, ast.Call):
        return _text(value.args[0])
    if isinstance(value, ast.Attribute):  # a function of a module in this package
        return _summary(f"{module}.{ast.unparse(value.value)}", ast.Name(value.attr))
    if not isinstance(value, ast.Name):
        return _text(value)
    _, definition = _definition(module, value.id)
    assert isinstance(definition, ast.FunctionDef | ast.ClassDef)
    return (ast.get_docstring(definition) or "").partition("\n")[0]


def _definition(module: str, name: str) -> tuple[str, _Definition]:
    """The module that defines a name, and its function, class or value; imports within the package are followed."""
    for statement in _tree(module).body:
        match statement:
            case ast.ImportFrom(module=str(source), names=names) if source.startswith("swamp."):
                if name in [imported.name for imported in names]:
                    return _definition(source, name)
            case ast.FunctionDef(name=defined) | ast.ClassDef(name=defined) if defined == name:
                return module, statement
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                return module, value
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                return module, value
            case _:
                pass
    raise LookupError(f"{module} does not define {name}.")


@cache
def _tree(module: str) -> ast.Module:
    path = Path(swamp.__file__).parent.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _text(constant: ast.AST) -> str:
    assert isinstance(constant, ast.Constant)
    return str(constant.value)
