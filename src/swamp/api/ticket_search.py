"""The search for the earliest stable ticket before a run, with its progress: `swamp ticket` and ticket="auto"."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event

from rich.console import Console

from swamp.algorithms import Plan
from swamp.algorithms.backend_choice import choose_backend
from swamp.algorithms.store import Store
from swamp.analysis.rewind_search import (
    InstabilityAnalysis,
    RewindSearchResult,
    RewindTrial,
    TrialLog,
    search_rewind_step,
)
from swamp.api.display import Display, in_notebook
from swamp.api.pace import Pace
from swamp.api.python_run import Job
from swamp.backends import Progress
from swamp.console import plain_console
from swamp.errors import Interrupted, SwampError
from swamp.runs.run_progress import TrainingStep
from swamp.training import Training
from swamp.training.snapshot import Snapshot

UNCONFIRMED = "with other batch orders, it is unstable at this step or stable at a quarter of it"
TRIALS = ".ticket-search"
"""Folder of the trials below the run directory of a call from Python."""


def search_display(console: Console, *, notebook: bool = False) -> Display:
    """Shows the trials of a search, and their trainings; see Display."""
    return Display(console, lambda at, active: at.what, ("trials", "trainings"), notebook=notebook)


def first_pruned_sparsity(plan: Plan) -> float:
    """Sparsity of the first pruned cycle: all later ones are stable with an earlier ticket than it needs."""
    densities = plan.schedule().densities
    return 1 - densities[min(1, len(densities) - 1)]


def latest_epochs(training: Training) -> float:
    """The latest possible ticket, in epochs."""
    return float(training.epochs) - (training.lr_after_rewind == "advance")


def search(
    instability: InstabilityAnalysis,
    trials: TrialLog | None,
    progress: "SearchProgress",
    latest: int,
    *,
    threshold: float = 0.02,
    resolution: float = 0.1,
) -> RewindSearchResult:
    """`search_rewind_step` up to step `latest`, shown on `progress`; trials that `trials` has are not repeated."""

    def on_trial(trial: RewindTrial) -> None:
        if trials is not None:
            trials.add(trial)
        verdict = "stable" if trial.barrier < threshold else "unstable"
        again = "  (verification, other batch orders)" if trial.repeat else ""
        progress.finished(
            f"ticket after {trial.steps:6d} steps ({trial.steps / instability.per_epoch:7.2f} epochs): "
            f"{100 * trial.barrier:6.2f} points, {verdict}{again}   {trial.seconds:.1f} s"
        )

    return search_rewind_step(
        instability.barrier_at if trials is None else partial(trials.barrier, instability.barrier_at),
        latest,
        threshold=threshold,
        resolution=resolution,
        on_trial=on_trial,
        on_start=partial(progress.started, instability),
    )


def stable_step(instability: InstabilityAnalysis, found: RewindSearchResult) -> int:
    """The step that was found. Raises SwampError if there is none."""
    if found.steps is None:
        last = found.trials[0].steps
        is_latest = last > instability.last - instability.per_epoch
        later = "" if is_latest else "a later ticket (swamp ticket --latest-epochs), "
        raise SwampError(
            f"no ticket up to step {last} ({last / instability.per_epoch:.3g} epochs) is stable at sparsity "
            f"{instability.sparsity:.4g}. Try {later}a lower learning rate, a longer warm-up or a higher sparsity in "
            f"the first pruned cycle; or hold out more examples: one of {instability.examples} is "
            f"{100 / instability.examples:.2g} points."
        )
    return found.steps


def plan_with_stable_ticket(job: Job, out: Path | None, *, shown: bool) -> Plan:
    """The plan of `job` with the earliest stable ticket at the sparsity of its first pruned cycle.

    out: run directory, in which the trials are kept (None: nowhere). Raises SwampError if no ticket is stable.
    """
    # Calls that differ only in the ticket of the plan have the same trials.
    job = replace(job, plan=replace(job.plan, ticket_epochs=0.0))
    sparsity = first_pruned_sparsity(job.plan)
    question = {"run": job.fingerprint, "sparsity": f"{sparsity:.6g}"}
    trials = None if out is None else TrialLog(out / TRIALS, question)
    backend = choose_backend(job.model, job.task, job.plan, job.training, job.backend, Store())
    with ExitStack() as stack:
        display = search_display(plain_console(stderr=True, force_jupyter=False), notebook=in_notebook())
        progress = SearchProgress(stack.enter_context(display) if shown else None)
        rest = job.training, backend, sparsity
        instability = InstabilityAnalysis(job.model, job.task, job.plan, *rest, progress=progress.training)
        latest = round(latest_epochs(job.training) * instability.per_epoch)
        steps = stable_step(instability, search(instability, trials, progress, latest))
    return replace(job.plan, ticket_epochs=steps / instability.per_epoch)


@dataclass(eq=False)
class SearchProgress:
    """Shows the trials of a search, and stops their trainings when `stop` is set."""

    display: Display | None
    """None: nothing is shown."""
    stop: Event = field(default_factory=Event)
    trial: int = -1
    ticket: str = ""
    """The ticket of the present trial, in words."""
    trainings: int = 0
    """Trainings of the present trial."""
    began: int = 0
    """Trainings of the present trial that have begun."""

    def stage(self, name: str, *, once: bool = False) -> None:
        """Other work than training begins; see Display."""
        if self.display is not None:
            self.display.stage(name, once=once)

    def started(self, instability: InstabilityAnalysis, steps: int, repeat: int, left: int) -> None:
        """A trial starts, and `left` trials are left with it."""
        self.trial, self.began = self.trial + 1, 0
        self.ticket = f"ticket after {steps} steps"
        trainings = instability.trainings(steps)
        self.trainings = len(trainings)
        if self.display is None:
            return
        if not self.trial:
            self.display.expect(Pace((sum(trainings),) * left, evaluation=instability.evaluation))
        earlier = self.display.pace.cycles[: self.trial]
        # Later tickets are not known yet: their trials count as this one.
        self.display.pace.cycles = (*earlier, *[sum(trainings)] * left)

    def training(self, what: str, networks: int) -> Progress:
        """Progress of `networks` trainings; see InstabilityAnalysis."""
        first, self.began = self.began, self.began + networks
        return _TrialProgress(self, first, f"{self.ticket}, {what}")

    def finished(self, line: str) -> None:
        """Print the line of a finished trial."""
        if self.display is not None:
            self.display.finished(line)


@dataclass(eq=False)
class _TrialProgress(Progress):
    """Progress of one of the trainings of a trial."""

    search: SearchProgress
    first: int
    """Trainings of this trial before these."""
    what: str

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        search = self.search
        if search.display is not None:
            at = TrainingStep(search.trial, self.first + index, search.trainings, step, total, what=self.what)
            search.display.step(at.with_values(snapshot))
        if search.stop.is_set():
            raise Interrupted("stopped. Finished trials are kept: repeat the command to continue.")

    def on_stage(self, name: str, *, once: bool = False) -> None:
        self.search.stage(f"{self.search.ticket}, {name}", once=once)
