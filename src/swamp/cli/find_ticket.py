"""swamp ticket."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from threading import Event
from typing import Annotated, Any

import tyro

from swamp.analysis.rewind_search import InstabilityAnalysis, RewindSearchResult, TrialLog
from swamp.api.ticket_search import (
    UNCONFIRMED,
    SearchProgress,
    first_pruned_sparsity,
    latest_epochs,
    search,
    search_display,
    stable_step,
)
from swamp.cli.run import recipe_or_config
from swamp.cli.session import Err, Out, parse, print_json, stoppable
from swamp.datasets import refuse_unread
from swamp.errors import SwampError
from swamp.report.figures.loss_landscape import instability as instability_figure
from swamp.runs.config import RunConfig, changed_options
from swamp.runs.directory import write_json
from swamp.runs.execute import backend_for, executing, prepare


@dataclass(frozen=True)
class TicketArgs:
    """Find the earliest stable ticket: the number of training steps after which copies stay linearly connected.

      swamp ticket RECIPE                              at the final sparsity of the recipe
      swamp ticket RECIPE --at-sparsity 0.5            at another sparsity; 0: dense, which needs the latest ticket
      swamp ticket RECIPE --out found.json             ... then: swamp run --config found.json

    Averaging helps only if the particles end in one basin, which depends on the ticket's step T0. With a T0 that is too
    early, two copies that differ only in batch order are separated by an error barrier (instability analysis, Frankle
    et al. 2020), and their mean is worse than each copy. For each T0, a dense network is trained from the ticket and
    pruned by magnitude, two copies are trained on that mask, and the error between them is measured on held-out data.
    Trials are stored (--trials): after an interruption, repeat the command to continue.
    T0 is found by bisection, which assumes that a ticket stays stable after its first stable step. The result is
    verified with other batch orders: at T0, and at T0 / 4, which must be unstable. Each T0 costs three trainings
    (dense: two).

    Denser copies need a later ticket: a ticket found at the final sparsity may be unstable at the first sparsities.
    All options of swamp run are available. The defaults shown below are those of the given recipe.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    at_sparsity: float | None = None
    """Sparsity of the copies, as a fraction of the prunable weights (default: of the last cycle; 0: dense)."""
    threshold: float = 0.02
    """Error barrier below which copies count as connected; 0.02 is 2 points (Frankle et al. 2020)."""
    latest_epochs: float | None = None
    """The latest ticket to try, in epochs (default: half of the training)."""
    resolution: float = 0.1
    """Precision as a fraction of T0. 0: exact to one step, although the noise of one pair of copies is larger."""
    trials: Path | None = None
    """Folder for the trials and their figure, barrier.svg (default: a folder in tickets/)."""
    out: Path | None = None
    """Write the configuration with the ticket found to this file, for swamp run --config."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""
    quiet: bool = False
    """Show no progress."""


TICKET_HELP = {
    "Search": ("at_sparsity", "threshold", "latest_epochs", "resolution", "trials", "out"),
    "Recipe, task and model": ("recipe", "task", "model", "examples"),
    "Training": ("epochs", "batch_size", "lr", "optimizer"),
    "Run": ("seed", "device", "backend", "json", "quiet"),
}
"""Options of `swamp ticket --help`."""


def ticket_command(arguments: Sequence[str]) -> None:
    """swamp ticket [RECIPE] [options]."""
    default, rest = recipe_or_config(arguments)
    given = parse(TicketArgs, "swamp ticket", rest, TicketArgs(default), TICKET_HELP)
    refuse_unread(given.config.task, changed_options(default, given.config))
    if given.out is not None and given.out.exists():
        raise SwampError(f"{given.out} already exists. Choose another --out, or delete it.")
    instability, trials, found = _searched(given)
    # Imported here, because matplotlib takes a second.
    from swamp.report.matplotlib_renderer import draw

    picture = trials.folder / "barrier.svg"
    draw(instability_figure(list(trials), instability.per_epoch, given.threshold), [picture])
    done: dict[str, Any] = _summary(given, instability, found) | {"picture": str(picture)}
    if given.out is not None and found.steps is not None:
        write_json(given.out, _with_ticket(given.config, found.steps / instability.per_epoch).to_json())
    if given.json:
        print_json(done)
    steps = stable_step(instability, found)
    if not given.json:
        _print(given, instability, found, steps, picture)


def with_stable_ticket(config: RunConfig, *, as_json: bool, quiet: bool) -> RunConfig:
    """The configuration with the earliest stable ticket at the sparsity of its first pruned cycle; prints it.

    All later cycles are sparser, and would be stable with an earlier one. The trials are stored as those of
    `swamp ticket`, so that an interrupted search goes on. Raises SwampError if no ticket is stable.
    """
    sparsity, latest = first_pruned_sparsity(config.plan), latest_epochs(config.training)
    given = TicketArgs(config, at_sparsity=sparsity, latest_epochs=latest, json=as_json, quiet=quiet)
    instability, _, found = _searched(given)
    epochs = stable_step(instability, found) / instability.per_epoch
    sure = "" if found.confirmed else f" (not confirmed: {UNCONFIRMED})"
    (Err if as_json else Out).print(f"ticket: after {epochs:.6g} epochs{sure}", soft_wrap=True, highlight=False)
    return _with_ticket(config, epochs)


def _searched(given: TicketArgs) -> tuple[InstabilityAnalysis, TrialLog, RewindSearchResult]:
    """Search with its progress on the terminal; it stops at a signal."""
    stop, console = Event(), Err if given.json else Out
    with stoppable(stop, console), executing(given.config), ExitStack() as shown:
        progress = SearchProgress(None if given.quiet else shown.enter_context(search_display(console)), stop)
        instability = _instability(given, progress)
        trials = _trials(given, instability)
        return instability, trials, _search(given, instability, trials, progress)


def _instability(given: TicketArgs, progress: SearchProgress) -> InstabilityAnalysis:
    progress.stage("preparing the data and the network", once=True)
    problem, model = prepare(given.config)
    plan = given.config.plan
    task = problem.task.to(next(model.parameters()).device)
    backend = backend_for(given.config, problem, model)
    sparsity = 1 - plan.schedule().densities[-1] if given.at_sparsity is None else given.at_sparsity
    return InstabilityAnalysis(model, task, plan, given.config.training, backend, sparsity, progress=progress.training)


def _trials(given: TicketArgs, instability: InstabilityAnalysis) -> TrialLog:
    # Searches that differ only in the ticket of the recipe have the same trials.
    config = _with_ticket(given.config, 0.0)
    sparsity = f"{instability.sparsity:.6g}"
    folder = given.trials or Path("tickets") / f"{config.name()}-at-{sparsity}"
    return TrialLog(folder, {"configuration": config.digest(), "sparsity": sparsity})


def _search(
    given: TicketArgs, instability: InstabilityAnalysis, trials: TrialLog, progress: SearchProgress
) -> RewindSearchResult:
    latest = (
        instability.last // 2 if given.latest_epochs is None else round(given.latest_epochs * instability.per_epoch)
    )
    if not 0 <= latest <= instability.last:
        raise SwampError(
            f"the latest ticket would be at step {latest}, but training ends at step {instability.last}. "
            f"Give --latest-epochs between 0 and {instability.last / instability.per_epoch:g}."
        )
    return search(instability, trials, progress, latest, threshold=given.threshold, resolution=given.resolution)


def _summary(given: TicketArgs, instability: InstabilityAnalysis, found: RewindSearchResult) -> dict[str, Any]:
    stable = found.steps is not None
    return {
        "steps": found.steps,
        "epochs": found.steps / instability.per_epoch if found.steps is not None else None,
        "confirmed": found.confirmed,
        "sparsity": instability.sparsity,
        "threshold": given.threshold,
        "per_epoch": instability.per_epoch,
        "trials": [instability.to_json(trial) for trial in found.trials],
        "config": str(given.out) if given.out is not None and stable else None,
        "seconds": sum(trial.seconds for trial in found.trials),
    }


def _print(
    given: TicketArgs, instability: InstabilityAnalysis, found: RewindSearchResult, steps: int, picture: Path
) -> None:
    epochs = steps / instability.per_epoch
    Out.print(
        f"\nearliest stable ticket at sparsity {instability.sparsity:.4g}: after {steps} steps, "
        f"--ticket-epochs {epochs:.6g}",
        soft_wrap=True,
    )
    Out.print(f"figure of barrier against step: {picture}", soft_wrap=True)
    if not found.confirmed:
        Out.print(
            f"not confirmed: {UNCONFIRMED}. The limit of stability is not sharp here; use a later ticket, or try "
            "another --seed.",
            soft_wrap=True,
        )
    if given.out is not None:
        Out.print(f"written: {given.out}. To run it: swamp run --config {quote(str(given.out))}", soft_wrap=True)


def _with_ticket(config: RunConfig, epochs: float) -> RunConfig:
    return replace(config, plan=replace(config.plan, ticket_epochs=epochs))
