"""The command line: swamp run | resume | compare | list."""

import json
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from swamp.errors import Interrupted, SwampError, unknown
from swamp.live import Live, Quiet, print_summary
from swamp.recipes import DEFAULT, RECIPES, recipe_named
from swamp.runs import Reporter, RunConfig, one_voice, resume, start

T = TypeVar("T")
Out = Console()
Err = Console(stderr=True)


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


@dataclass(frozen=True)
class CompareArgs:
    """Compare runs: accuracy at each sparsity, mean and 95 % interval over seeds, differences paired by seed."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    out: Path = Path("comparison")
    """Folder for compare.csv, .json, .png and .svg."""
    metric: str = "accuracy"
    """accuracy, nll or ece."""
    split: Literal["test", "validation", "train"] = "test"
    """Which examples the metric was measured on."""
    baseline: str | None = None
    """Label that differences are taken to (default: imp where it is among the runs)."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""


@dataclass(frozen=True)
class ListArgs:
    """Say what there is, one line each."""

    what: tyro.conf.Positional[Literal["recipes", "tasks", "models", "methods", "scores", "backends"]]
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""


def run_command(arguments: Sequence[str]) -> None:
    """swamp run [RECIPE] [options]."""
    rest = list(arguments)
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    config = _configured(rest)
    if recipe and config:
        raise SwampError(f"give a recipe ({recipe}) or --config, not both: each is a whole configuration.")
    default = RunArgs(config or recipe_named(recipe or DEFAULT)())
    given = _parse(RunArgs, "swamp run", rest, default)
    out = given.out or Path("runs") / given.config.name()
    _finish(given.json, given.quiet, lambda reporter, stop: start(given.config, out, reporter, stop))


def resume_command(arguments: Sequence[str]) -> None:
    """swamp resume RUN."""
    given = _parse(ResumeArgs, "swamp resume", arguments)
    _finish(given.json, given.quiet, lambda reporter, stop: resume(given.run, reporter, stop))


def compare_command(arguments: Sequence[str]) -> None:
    """swamp compare RUN..."""
    given = _parse(CompareArgs, "swamp compare", arguments)
    from swamp.report import compare, print_table, read_run, write_comparison

    if not given.runs:
        raise SwampError("no run was given. Name run directories, e.g.: swamp compare runs/*")
    comparison = compare(
        [read_run(path) for path in given.runs], metric=given.metric, split=given.split, baseline=given.baseline
    )
    written = [str(path) for path in write_comparison(comparison, given.out)]
    if given.json:
        _print_json({**comparison.to_json(), "files": written})
        return
    print_table(comparison, Out)
    Out.print(f"written: {' '.join(written)}", soft_wrap=True, highlight=False)


def list_command(arguments: Sequence[str]) -> None:
    """swamp list recipes|tasks|models|methods|scores|backends."""
    given = _parse(ListArgs, "swamp list", arguments)
    lines = _LISTS[given.what]()
    if given.json:
        _print_json({given.what: lines})
        return
    width = max(map(len, lines))
    for name, what in lines.items():
        default = " (default)" if given.what == "recipes" and name == DEFAULT else ""
        Out.print(f"[bold]{name:<{width}}[/bold]  {what}{default}", soft_wrap=True, highlight=False)


_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "run": (run_command, "prune a network, from a recipe or a configuration"),
    "resume": (resume_command, "go on with a run after any interruption"),
    "compare": (compare_command, "put runs beside each other: table, differences, plot"),
    "list": (list_command, "say what recipes, tasks, models, methods, scores and backends there are"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point.

    Exit codes: 0 done, 1 a fault of swamp, 2 bad input, 3 training diverged, 4 another rank was lost, 130 and 143
    stopped.
    """
    with one_voice():
        _main(arguments)


def _main(arguments: Sequence[str] | None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        _overview()
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        from swamp import __version__

        print(__version__)
        return
    try:
        if given[0] not in _COMMANDS:
            raise unknown("command", given[0], _COMMANDS)
        _COMMANDS[given[0]][0](given[1:])
    except SwampError as error:
        Err.print(f"[bold red]swamp:[/bold red] {_escaped(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Err.print(
            "[bold red]swamp:[/bold red] stopped at once. What was saved stays: swamp resume RUN goes on from it."
        )
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, say) has had enough; nothing is wrong.
        sys.stderr.close()
        sys.exit(0)


def _overview() -> None:
    Out.print("[bold]swamp[/bold]: prune neural networks with Sparse Weight Averaging with Multiple Particles\n")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, (_, what) in _COMMANDS.items():
        table.add_row(f"  swamp [bold]{name}[/bold]", what)
    Out.print(table)
    Out.print("\nStart with [bold]swamp run[/bold]; every command explains itself with --help.")


def _parse(kind: type[T], prog: str, arguments: Sequence[str], default: T | None = None) -> T:
    config = (tyro.conf.OmitArgPrefixes,)
    if default is None:
        return tyro.cli(kind, prog=prog, args=list(arguments), config=config)
    return tyro.cli(kind, prog=prog, args=list(arguments), config=config, default=default)


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
    with _signals(stop) as received, _warnings_to(Err), shown:
        try:
            done = work(reporter, stop)
        except Interrupted as error:
            error.exit_code = 128 + (received[0] if received else signal.SIGINT)
            raise
    if not done:
        return  # a rank that served
    if as_json:
        _print_json(done)
    else:
        print_summary(done, Out)


@contextmanager
def _signals(stop: Event) -> Generator[list[int]]:
    """The first SIGINT or SIGTERM asks the run to save and stop; a second one ends it at once."""
    received: list[int] = []

    def asked(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stop.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _warnings_to(console: Console) -> Generator[None]:
    def show(message: Warning | str, *others: Any, **more: Any) -> None:
        console.print(f"[yellow]warning:[/yellow] {_escaped(str(message))}", soft_wrap=True, highlight=False)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _first_line(documented: Any) -> str:
    return (documented.__doc__ or "").strip().splitlines()[0]


def _listed_tasks() -> dict[str, str]:
    from swamp.tasks import TASKS

    return {name: _first_line(builder) for name, builder in TASKS.items()}


def _listed_models() -> dict[str, str]:
    from swamp.tasks import NETWORKS

    return dict(NETWORKS)


def _listed_methods() -> dict[str, str]:
    from swamp.methods import METHODS

    return {name: method.summary for name, method in METHODS.items()}


def _listed_scores() -> dict[str, str]:
    from swamp.scores import SCORES

    return {name: _first_line(score) for name, score in SCORES.items()}


def _listed_backends() -> dict[str, str]:
    from swamp.particles import BACKENDS

    return {name: _first_line(backend) for name, backend in BACKENDS.items()}


_LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "recipes": lambda: {name: _first_line(recipe) for name, recipe in RECIPES.items()},
    "tasks": _listed_tasks,
    "models": _listed_models,
    "methods": _listed_methods,
    "scores": _listed_scores,
    "backends": _listed_backends,
}


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
