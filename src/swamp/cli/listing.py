"""swamp list."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from swamp.cli.session import Out, parse, print_json
from swamp.recipes import DEFAULT, RECIPES, STUDIES

_What = Literal[
    "recipes", "tasks", "models", "methods", "scores", "allocations", "structures", "backends", "studies", "analyses"
]


@dataclass(frozen=True)
class ListArgs:
    """Say what there is, one line each."""

    what: tyro.conf.Positional[_What]
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""


def list_command(arguments: Sequence[str]) -> None:
    """swamp list recipes|tasks|models|methods|scores|allocations|structures|backends|studies|analyses."""
    given = parse(ListArgs, "swamp list", arguments)
    lines = _LISTS[given.what]()
    if given.json:
        print_json({given.what: lines})
        return
    width = max(map(len, lines), default=0)
    for name, what in lines.items():
        default = " (default)" if given.what == "recipes" and name == DEFAULT else ""
        Out.print(f"[bold]{name:<{width}}[/bold]  {what}{default}", soft_wrap=True, highlight=False)


def _first_line(documented: Any) -> str:
    return (documented.__doc__ or "").strip().splitlines()[0]


def _listed_tasks() -> dict[str, str]:
    from swamp.datasets import TASKS

    return {name: _first_line(builder) for name, builder in TASKS.items()}


def _listed_models() -> dict[str, str]:
    from swamp.datasets import NETWORKS

    return {**NETWORKS, "timm:NAME": "a model of timm with its own preprocessing (pip install 'swamp[timm]'); images"}


def _listed_methods() -> dict[str, str]:
    from swamp.algorithms import METHODS

    return {name: method.summary for name, method in METHODS.items()}


def _listed_scores() -> dict[str, str]:
    from swamp.scores import SCORES

    return {name: _first_line(score) for name, score in SCORES.items()}


def _listed_allocations() -> dict[str, str]:
    from swamp.masks import ALLOCATIONS

    return {name: _first_line(allocation) for name, allocation in ALLOCATIONS.items()}


def _listed_structures() -> dict[str, str]:
    from swamp.masks import STRUCTURES

    return {name: _first_line(structure) for name, structure in STRUCTURES.items()}


def _listed_backends() -> dict[str, str]:
    from swamp.backends import BACKENDS

    return {name: _first_line(backend) for name, backend in BACKENDS.items()}


def _listed_analyses() -> dict[str, str]:
    from swamp.analysis import ANALYSES

    return {name: _first_line(analysis) for name, analysis in ANALYSES.items()}


_LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "recipes": lambda: {name: _first_line(recipe) for name, recipe in RECIPES.items()},
    "tasks": _listed_tasks,
    "models": _listed_models,
    "methods": _listed_methods,
    "scores": _listed_scores,
    "allocations": _listed_allocations,
    "structures": _listed_structures,
    "backends": _listed_backends,
    "studies": lambda: {name: _first_line(study) for name, study in STUDIES.items()},
    "analyses": _listed_analyses,
}
