"""swamp ticket."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import tyro

from swamp.algorithms import backend_of
from swamp.analysis import Found, Instability, Trial, Trials, search
from swamp.backends import Silent
from swamp.cli.run import recipe_or_config
from swamp.cli.session import Err, Out, parse, print_json, stoppable
from swamp.errors import Interrupted, SwampError
from swamp.report import draw
from swamp.report import instability as instability_figure
from swamp.runs import RunConfig, executing, prepare
from swamp.runs.directory import write_json
from swamp.training import Snapshot


@dataclass(frozen=True)
class TicketArgs:
    """Find the earliest stable ticket: how long to train before copies that see other batches stay connected.

    swamp ticket RECIPE                              at the sparsity that the recipe ends with

    swamp ticket RECIPE --at 0.5                     at another sparsity; --at 0: dense, the hardest

    swamp ticket RECIPE --out found.json             ... then: swamp run --config found.json

    Averaging helps only where particles end in one valley. Whether they do is decided by the ticket's step T0: trained
    from too early a ticket, two copies that differ in batch order alone are parted by a barrier of error (instability,
    Frankle et al. 2020), and their mean is worse than each. For each T0 tried, a dense network is trained from it and
    pruned by magnitude, two copies are trained on that mask, and the error between them is measured on held-out data.
    Trials are kept (--trials): stopped or killed, the same command goes on with the next one.
    T0 is found by bisection, which assumes that a stable ticket stays stable later; the result is tried once more with
    other batch orders, and a quarter of it, which must be unstable. Each T0 costs three trainings (dense: two).

    Sparse copies need a later ticket the denser they are: one found at the last sparsity may fail at the first ones.
    All options of swamp run hold. The defaults shown below are those of the recipe named first.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    at: float | None = None
    """Sparsity to look at, as a fraction of the prunable weights (default: that of the last cycle; 0: dense)."""
    threshold: float = 0.02
    """Error barrier below which copies count as connected; 0.02 is 2 points (Frankle 2020)."""
    latest_epochs: float | None = None
    """The latest ticket to try (default: half of the training)."""
    resolution: float = 0.1
    """How exact, as a share of T0; 0: to the step, which the noise of a single pair of copies does not deserve."""
    trials: Path | None = None
    """Where trials are kept, and barrier.svg, the picture of them (default: tickets/ and a name)."""
    out: Path | None = None
    """Write the configuration with this ticket, for swamp run --config."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""
    quiet: bool = False
    """No line for each ticket tried."""


def ticket_command(arguments: Sequence[str]) -> None:
    """swamp ticket [RECIPE] [options]."""
    default, rest = recipe_or_config(arguments)
    given = parse(TicketArgs, "swamp ticket", rest, TicketArgs(default))
    if given.out is not None and given.out.exists():
        raise SwampError(f"{given.out} exists already. Choose another --out, or delete it.")
    stop = Event()
    with stoppable(stop), executing(given.config):
        instability = _instability(given, stop)
        trials = _trials(given, instability)
        found = _searched(given, instability, trials)
    picture = trials.folder / "barrier.svg"
    draw(instability_figure(list(trials), instability.per_epoch, given.threshold), picture, "svg")
    done: dict[str, Any] = _summary(given, instability, found) | {"picture": str(picture)}
    if given.out is not None and found.steps is not None:
        write_json(given.out, _with_ticket(given.config, found.steps / instability.per_epoch).to_json())
    if given.json:
        print_json(done)
    if found.steps is None:
        raise SwampError(
            f"no ticket up to step {found.trials[0].steps} ({done['trials'][0]['epochs']:.3g} epochs) is stable at "
            f"sparsity {instability.sparsity:.4g}. Try later ones (--latest-epochs), a higher sparsity (--at), or a "
            "gentler training (--lr, --warmup)."
        )
    if not given.json:
        _print(given, instability, found, found.steps, picture)


def _instability(given: TicketArgs, stop: Event) -> Instability:
    problem, model = prepare(given.config)
    plan = given.config.plan
    task = problem.task.to(next(model.parameters()).device)
    backend = backend_of(given.config.backend, model, task, plan)
    sparsity = 1 - plan.schedule().densities[-1] if given.at is None else given.at
    return Instability(model, task, plan, given.config.training, backend, sparsity, progress=_Stopping(stop))


def _trials(given: TicketArgs, instability: Instability) -> Trials:
    # Whatever ticket the recipe has, it is not asked about.
    asked = _with_ticket(given.config, 0.0)
    sparsity = f"{instability.sparsity:.6g}"
    folder = given.trials or Path("tickets") / f"{asked.name()}-at-{sparsity}"
    return Trials(folder, {"configuration": asked.digest(), "sparsity": sparsity})


def _searched(given: TicketArgs, instability: Instability, trials: Trials) -> Found:
    latest = (
        instability.last // 2 if given.latest_epochs is None else round(given.latest_epochs * instability.per_epoch)
    )
    if not 0 <= latest <= instability.last:
        raise SwampError(
            f"the latest ticket lies after step {latest}, and the training ends after {instability.last}. "
            f"Give --latest-epochs between 0 and {instability.last / instability.per_epoch:g}."
        )
    console = Err if given.json else Out
    shown = not given.quiet

    def tell(trial: Trial) -> None:
        trials.add(trial)
        verdict = "stable" if trial.barrier < given.threshold else "a barrier"
        again = "  (again, other batch orders)" if trial.repeat else ""
        if shown:
            console.print(
                f"ticket after {trial.steps:6d} steps ({trial.steps / instability.per_epoch:7.2f} epochs): "
                f"{100 * trial.barrier:6.2f} points, {verdict}{again}   {trial.seconds:.1f} s",
                highlight=False,
                soft_wrap=True,
            )

    working = console.status("training copies") if shown and console.is_terminal else nullcontext()
    with working:
        measure = partial(trials.barrier, instability.barrier_at)
        return search(measure, latest, threshold=given.threshold, resolution=given.resolution, tell=tell)


def _summary(given: TicketArgs, instability: Instability, found: Found) -> dict[str, Any]:
    stable = found.steps is not None
    return {
        "steps": found.steps,
        "epochs": found.steps / instability.per_epoch if found.steps is not None else None,
        "holds": found.holds,
        "sparsity": instability.sparsity,
        "threshold": given.threshold,
        "per_epoch": instability.per_epoch,
        "trials": [instability.to_json(trial) for trial in found.trials],
        "config": str(given.out) if given.out is not None and stable else None,
        "seconds": sum(trial.seconds for trial in found.trials),
    }


def _print(given: TicketArgs, instability: Instability, found: Found, steps: int, picture: Path) -> None:
    epochs = steps / instability.per_epoch
    Out.print(
        f"\nearliest stable ticket at sparsity {instability.sparsity:.4g}: after {steps} steps, "
        f"--ticket-epochs {epochs:.6g}",
        highlight=False,
        soft_wrap=True,
    )
    Out.print(f"barrier against step: {picture}", soft_wrap=True, highlight=False)
    if not found.holds:
        Out.print(
            "not confirmed: with other batch orders it was unstable there, or stable at a quarter of it. Stability is "
            "no sharp line here; take a later ticket to be safe, or try another --seed.",
            soft_wrap=True,
        )
    if given.out is not None:
        Out.print(f"written: {given.out}. Go on with: swamp run --config {given.out}", soft_wrap=True, highlight=False)


def _with_ticket(config: RunConfig, epochs: float) -> RunConfig:
    return replace(config, plan=replace(config.plan, ticket_epochs=epochs))


@dataclass(frozen=True)
class _Stopping(Silent):
    """Progress that stops where it is asked to."""

    stop: Event = field(default_factory=Event)

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        if self.stop.is_set():
            raise Interrupted("stopped. The trials that ended are kept: the same command goes on.")
