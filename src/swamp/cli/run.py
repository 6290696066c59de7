"""swamp run and swamp resume."""

from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from threading import Event
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from swamp.algorithms.registry import method_named
from swamp.algorithms.unused import refuse_unused
from swamp.api.progress import LiveReporter, number
from swamp.cli.session import Err, Out, parse, print_json, print_labelled, stoppable
from swamp.datasets import refuse_unread, task_named
from swamp.errors import SwampError
from swamp.fields import with_option_names
from swamp.recipes import configuration, for_task
from swamp.runs.budget import allot, dense_trainings, seconds_of_dense_training
from swamp.runs.config import RunConfig, changed_options
from swamp.runs.execute import resume, start
from swamp.runs.read import open_run
from swamp.runs.run_progress import Reporter
from swamp.tracking.tracker import chosen_trackers
from swamp.tracking.tracking_reporter import tracked


@dataclass(frozen=True)
class RunArgs:
    """Prune a network in cycles, and store the run in a directory.

    The network is first trained for a short while: these weights are the ticket. In each cycle, N copies of the ticket,
    the particles, are trained with different batch orders, and their weights are averaged. The smallest weights of the
    average are removed for the next cycle, and the others go back to the ticket. Other methods change some of this.

      swamp run                                 the default recipe
      swamp run RECIPE --method imp --seed 3    another recipe (see swamp list recipes), with changes
      swamp run --task digits                   a task, with a model and training settings that suit it
      swamp run --config runs/x/config.json     the configuration of an earlier run
      swamp run RECIPE --budget 12              at the cost of twelve dense trainings, or --budget 30min

    The defaults below are those of the given recipe, task or configuration.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    ticket: Literal["given", "auto"] = "given"
    """given: the ticket is taken after --ticket-epochs. auto: a search before the run finds the earliest ticket that is
    stable at the sparsity of the first pruned cycle: about six trials of three trainings, which no recorded cost
    includes. See swamp ticket. Not together with --budget."""
    budget: str = ""
    """Cost of the whole run: a number of dense trainings of --epochs epochs, such as 12, or a time, such as 30min, for
    which the speed is measured first. It sets the numbers of cycles, particles and epochs that you do not give."""
    out: Path | None = None
    """Run directory (default: runs/NAME; the name is made from the settings)."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""
    quiet: bool = False
    """Show no progress."""


RUN_HELP = {
    "Recipe, task and model": ("recipe", "task", "model", "examples"),
    "Pruning": ("method", "sparsity", "particles", "cycles", "prune_fraction", "ticket_epochs", "ticket", "structure"),
    "Training of each particle": ("epochs", "batch_size", "lr", "optimizer"),
    "Run": ("budget", "seed", "device", "backend", "out", "track", "json", "quiet"),
}
"""Options of `swamp run --help`."""


@dataclass(frozen=True)
class ResumeArgs:
    """Continue an interrupted run. The result is the same as without the interruption."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""
    quiet: bool = False
    """Show no progress."""


def run_command(arguments: Sequence[str]) -> None:
    """swamp run [RECIPE] [options]."""
    default, rest = recipe_or_config(_joined(arguments, "--track"))
    given = parse(RunArgs, "swamp run", rest, RunArgs(default), RUN_HELP)
    config, allotted = given.config, None
    # An option counts as given even if it was typed with the value that the recipe has anyway.
    options = {*changed_options(default, config), *_typed(rest)}
    if given.ticket == "auto":
        config = _with_stable_ticket(given, options)
    if given.budget:
        budget = dense_trainings(given.budget, lambda: seconds_of_dense_training(config))
        allotted = allot(config.plan, config.training, budget, options)
        config = replace(config, plan=allotted.plan, training=allotted.training)
        (Err if given.json else Out).print(f"budget: {allotted.sentence}", soft_wrap=True, highlight=False)
    path = given.out or Path("runs") / config.name()
    done = run_configured(default, config, path, as_json=given.json, quiet=given.quiet)
    if allotted is not None and done and not given.json:
        twice = allot(given.config.plan, given.config.training, 2 * allotted.budget, options)
        Out.print(f"With twice the budget: {twice.sentence}", soft_wrap=True, highlight=False)


def _typed(arguments: Sequence[str]) -> set[str]:
    """Names of the options among the arguments, as fields."""
    return {word.partition("=")[0][2:].replace("-", "_") for word in arguments if word.startswith("--")}


def _with_stable_ticket(given: RunArgs, options: Collection[str]) -> RunConfig:
    # Only here: it imports the analyses.
    from swamp.cli.find_ticket import with_stable_ticket

    if given.budget:
        raise SwampError(
            "a budget is spent in advance, and --ticket auto costs what its search needs. Give one of them; or search "
            "first (swamp ticket), and give --ticket-epochs."
        )
    if "ticket_epochs" in options:
        raise SwampError("--ticket auto finds --ticket-epochs. Leave one of them out.")
    return with_stable_ticket(given.config, as_json=given.json, quiet=given.quiet)


def run_configured(default: RunConfig, config: RunConfig, path: Path, *, as_json: bool, quiet: bool) -> dict[str, Any]:
    """Run `config`, which options changed from `default`, in a new directory; print its summary, and return it."""
    given = changed_options(default, config)
    refuse_unread(config.task, given)
    for note in refuse_unused(config.plan, config.training, given):
        print_labelled(Err, "warning:", "yellow", with_option_names(note))
    chosen_trackers(config.track)  # raises before anything is shown
    with _progress(as_json, quiet) as (shown, stop), tracked(shown, config, path) as reporter:
        done = start(config, path, reporter, stop)
    _print_done(done, as_json)
    return done


def resume_command(arguments: Sequence[str]) -> None:
    """swamp resume RUN."""
    given = parse(ResumeArgs, "swamp resume", arguments)
    directory, config = open_run(given.run)
    if directory.summary.exists():
        text = f"the run {given.run} was finished before: nothing is trained. Its files are verified."
        print_labelled(Err, "note:", "yellow", text)
    path = given.run
    with _progress(given.json, given.quiet) as (shown, stop), tracked(shown, config, path, resumed=True) as reporter:
        done = resume(path, reporter, stop)
    _print_done(done, given.json)


@contextmanager
def _progress(as_json: bool, quiet: bool) -> Generator[tuple[Reporter, Event]]:
    """What shows progress, and an event that a signal sets inside the block."""
    stop, console = Event(), Err if as_json else Out
    with stoppable(stop, console):
        yield Reporter() if quiet else LiveReporter(console), stop


def _print_done(done: dict[str, Any], as_json: bool) -> None:
    if not done:
        return  # a rank other than 0: rank 0 prints the summary
    if as_json:
        print_json(done)
    else:
        _print_summary(done, Out)


def _print_summary(done: dict[str, Any], console: Console) -> None:
    """Print the metrics of a finished run, beside the dense network, and its directory."""
    table = Table(title=f"{done['method']}: {done['run']}", title_justify="left", box=None, pad_edge=False)
    names = list(done["test"])
    for heading in ("", "sparsity %", "of all %", *(f"test {name}" for name in names)):
        table.add_column(heading, justify="right")
    for label, part in (("dense", done["dense"]), ("sparse", done)):
        if part is None:
            continue
        of_all = 1 - part["density"]["all"]
        values = (number(part["test"][name], name) for name in names)
        table.add_row(label, f"{100 * part['sparsity']:.2f}", f"{100 * of_all:.2f}", *values)
    several = method_named(done["method"]).ensemble
    members = f" (the first of {len(done['cycles'][-1]['particles'])} members)" if several else ""
    console.print()
    console.print(table)
    console.print(
        "Sparsity: zeros in the prunable weights; of all: in all parameters.\n"
        f"\n{done['seconds']:.0f} s of computation. "
        f"Sparse weights for load_state_dict: {done['run']}/model.safetensors{members}\n"
        f"Compare with other runs: swamp compare {quote(str(done['run']))} OTHER...",
        soft_wrap=True,
    )


def recipe_or_config(arguments: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """The configuration given by RECIPE, --recipe, --config or --task (or the default), and the other arguments."""
    rest = list(arguments)
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else ""
    for name in _taken(rest, "--recipe", "the name of a recipe, e.g. --recipe digits-mlp"):
        if recipe and name != recipe:
            raise SwampError(f"two recipes were given, {recipe} and {name}. Give one.")
        recipe = name
    files = _taken(rest, "--config", "the path of a config.json")
    task, model = option_value(rest, "--task"), option_value(rest, "--model")
    if not files:
        return configuration(recipe, task, model), rest
    if recipe:
        raise SwampError(f"give a recipe ({recipe}) or --config, not both: each is a complete configuration.")
    config = RunConfig.load(Path(files[-1]))
    if task not in ("", config.task):
        task_named(task)  # raises for an unknown name
        config = for_task(task, model, config)
    return config, rest


def _joined(arguments: Sequence[str], option: str) -> list[str]:
    """The arguments, with the values of a repeated `option` as one, separated by commas."""
    rest = list(arguments)
    if values := _taken(rest, option, "the name of a tracker, e.g. --track tensorboard"):
        rest += [option, ",".join(values)]
    return rest


def _taken(rest: list[str], option: str, what: str) -> list[str]:
    """Remove `option VALUE` and `option=VALUE` from the arguments; returns the values."""
    values: list[str] = []
    while places := _places(rest, option):
        value = _value_at(rest, places[0])
        if not value:
            raise SwampError(f"{option} needs {what}.")
        del rest[places[0] : places[0] + (1 if "=" in rest[places[0]] else 2)]
        values.append(value)
    return values


def option_value(rest: Sequence[str], option: str) -> str:
    """The last value of `option` among the arguments, as in their parser; empty if not given or without a value."""
    places = _places(rest, option)
    return _value_at(rest, places[-1]) if places else ""


def _value_at(rest: Sequence[str], index: int) -> str:
    if "=" in rest[index]:
        return rest[index].partition("=")[2]
    following = rest[index + 1] if index + 1 < len(rest) else ""
    return "" if following.startswith("-") else following


def _places(rest: Sequence[str], option: str) -> list[int]:
    return [index for index, word in enumerate(rest) if word == option or word.startswith(f"{option}=")]
