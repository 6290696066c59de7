"""swamp run and swamp resume."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import tyro

from swamp.cli.progress import Live, Opening, Quiet, print_summary
from swamp.cli.session import Err, Out, parse, print_json, stoppable
from swamp.datasets import task_named
from swamp.errors import SwampError
from swamp.recipes import configuration, for_task
from swamp.runs import Reporter, RunConfig, resume, start


@dataclass(frozen=True)
class RunArgs:
    """Prune a network: train the ticket, then cycle after cycle train particles, average, prune, rewind.

    swamp run                                        the default recipe
    swamp run RECIPE --method imp --seed 3           another recipe, changed (see swamp list recipes); or --recipe
    swamp run --task digits                          a task, with a model and a training that fit it
    swamp run --config runs/x/config.json            the configuration of an earlier run

    The defaults shown below are those of the recipe named first.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """Run directory (default: runs/ and a name made of the settings)."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""
    quiet: bool = False
    """No progress on the terminal."""


@dataclass(frozen=True)
class ResumeArgs:
    """Go on with an interrupted run: what is finished is read back, the result is that of a run never interrupted."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""
    quiet: bool = False
    """No progress on the terminal."""


def run_command(arguments: Sequence[str]) -> None:
    """swamp run [RECIPE] [options]."""
    default, rest = recipe_or_config(arguments)
    given = parse(RunArgs, "swamp run", rest, RunArgs(default))
    out = given.out or Path("runs") / given.config.name()
    _finish(given.json, given.quiet, lambda reporter, stop: start(given.config, out, reporter, stop))


def resume_command(arguments: Sequence[str]) -> None:
    """swamp resume RUN."""
    given = parse(ResumeArgs, "swamp resume", arguments)
    _finish(given.json, given.quiet, lambda reporter, stop: resume(given.run, reporter, stop))


def recipe_or_config(arguments: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """The configuration to start from, and the arguments that change it.

    It is that of [RECIPE] or --recipe NAME, of --config FILE, of the recipe of --task, or of the default recipe.
    """
    rest = list(arguments)
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else ""
    for name in _taken(rest, "--recipe", "the name of a recipe, e.g. --recipe digits-mlp"):
        if recipe and name != recipe:
            raise SwampError(f"two recipes were given, {recipe} and {name}. Give one.")
        recipe = name
    files = _taken(rest, "--config", "the path of a config.json")
    task, model = _value(rest, "--task"), _value(rest, "--model")
    if not files:
        return configuration(recipe, task, model), rest
    if recipe:
        raise SwampError(f"give a recipe ({recipe}) or --config, not both: each is a whole configuration.")
    config = RunConfig.load(Path(files[-1]))
    if task not in ("", config.task):
        task_named(task)  # refuses an unknown name
        config = for_task(task, model, config)
    return config, rest


def _taken(rest: list[str], option: str, what: str) -> list[str]:
    """Remove `option VALUE` and `option=VALUE` from the arguments; returns the values."""
    values: list[str] = []
    while (index := _index(rest, option)) is not None:
        value = _value(rest[index:], option)
        if not value:
            raise SwampError(f"{option} needs {what}.")
        del rest[index : index + (1 if "=" in rest[index] else 2)]
        values.append(value)
    return values


def _value(rest: Sequence[str], option: str) -> str:
    """The value of `option` among the arguments; empty where it is not given, or has none."""
    index = _index(rest, option)
    if index is None:
        return ""
    if "=" in rest[index]:
        return rest[index].partition("=")[2]
    following = rest[index + 1] if index + 1 < len(rest) else ""
    return "" if following.startswith("-") else following


def _index(rest: Sequence[str], option: str) -> int | None:
    return next((i for i, word in enumerate(rest) if word == option or word.startswith(f"{option}=")), None)


def _finish(as_json: bool, quiet: bool, work: Callable[[Reporter, Event], dict[str, Any]]) -> None:
    """Do the work with progress and signals, and print its summary."""
    stop = Event()
    console = Err if as_json else Out
    shows_bars = not as_json or Err.is_terminal
    reporter = Quiet() if quiet else Live(console) if shows_bars else Opening(Err)
    shown: AbstractContextManager[Any] = reporter if isinstance(reporter, Live) else nullcontext()
    with stoppable(stop), shown:
        done = work(reporter, stop)
    if not done:
        return  # a rank that served: rank 0 says it all
    if as_json:
        print_json(done)
    else:
        print_summary(done, Out)
