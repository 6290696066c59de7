"""swamp run and swamp resume."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import tyro

from swamp.cli.progress import Live, Quiet, print_summary
from swamp.cli.session import Err, Out, parse, print_json, stoppable
from swamp.errors import SwampError
from swamp.recipes import DEFAULT, recipe_named
from swamp.runs import Reporter, RunConfig, resume, start


@dataclass(frozen=True)
class RunArgs:
    """Prune a network: train the ticket, then cycle after cycle train particles, average, prune, rewind.

    swamp run                                        the default recipe
    swamp run RECIPE --method imp --seed 3           another recipe, changed (see swamp list recipes)
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
    """The configuration that [RECIPE] or --config FILE names, and the other arguments, which change it."""
    rest = list(arguments)
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    config = _configured(rest)
    if recipe and config:
        raise SwampError(f"give a recipe ({recipe}) or --config, not both: each is a whole configuration.")
    return config or recipe_named(recipe or DEFAULT)(), rest


def _configured(rest: list[str]) -> RunConfig | None:
    """Take `--config FILE` out of the arguments: the file gives the defaults of all others."""
    for index, word in enumerate(rest):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] if "=" in word else "".join(rest[index + 1 : index + 2])
            del rest[index : index + (1 if "=" in word else 2)]
            if not path:
                raise SwampError("--config needs the path of a config.json.")
            return RunConfig.load(Path(path))
    return None


def _finish(as_json: bool, quiet: bool, work: Callable[[Reporter, Event], dict[str, Any]]) -> None:
    """Do the work with progress and signals, and print its summary."""
    stop = Event()
    console = Err if as_json else Out
    reporter = Quiet() if quiet or (as_json and not Err.is_terminal) else Live(console)
    shown: AbstractContextManager[Any] = nullcontext() if isinstance(reporter, Quiet) else reporter
    with stoppable(stop), shown:
        done = work(reporter, stop)
    if not done:
        return  # a rank that served: rank 0 says it all
    if as_json:
        print_json(done)
    else:
        print_summary(done, Out)
