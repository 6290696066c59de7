"""The public calls that prune a model: with a run directory, progress, and a function called after each cycle."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack, cast

from torch import nn

from swamp.algorithms import Cycle, Plan, SparseModel, train_on
from swamp.algorithms.sparse_model import PlanOptions
from swamp.algorithms.store import Store
from swamp.algorithms.unused import refuse_unused
from swamp.api.progress import live_progress
from swamp.api.python_run import Job, stored_cycles
from swamp.arguments import checked
from swamp.backends import Backend, Progress, Ticket
from swamp.backends.autotune import Choice
from swamp.errors import SwampError, final_line, warn
from swamp.fields import changed_fields
from swamp.masks import Mask, Scope
from swamp.masks.schedule import Count
from swamp.references import PYTHON_PREFIX
from swamp.runs.budget import allot
from swamp.runs.execute import prepare
from swamp.runs.overview import Overview, overview
from swamp.runs.read import open_with_cycles, read_cycle, read_origin, warn_of_first_member
from swamp.runs.run_progress import ReportedProgress, Reporter, Reporters
from swamp.tracking.tracker import Track, Tracker, chosen_trackers
from swamp.tracking.tracking_reporter import TrackingReporter
from swamp.training import Task, Training
from swamp.training.mask_updates import Dynamic

_SPARSITY = 0.95
"""The default of `prune`, which does not count as given."""
_PARTICLES = 4
"""The default of `prune` and `retrain`."""
OnCycle = Callable[[Cycle], Any]
"""Called after each finished cycle."""


@checked
def prune(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float = _SPARSITY,
    particles: Count | Sequence[Count] | None = None,
    method: str | None = None,
    training: Training | None = None,
    budget: float | None = None,
    ticket: Literal["given", "auto"] = "given",
    backend: Backend | str | None = None,
    out: Path | str | None = None,
    progress: bool = False,
    track: Track = (),
    on_cycle: OnCycle | None = None,
    **options: Unpack[PlanOptions],
) -> SparseModel:
    """Prune a copy of `model` on `task`.

    Args:
        model: Any module; its weights are the initial weights, and stay as they are.
        task: Data, loss and metrics, see `Task.of`.
        sparsity: Fraction of the prunable weights to remove, in [0, 1).
        particles: Particles N a cycle; a sequence gives one number per cycle, the last one repeats. "auto": as many as
            are worth their cost, which needs validation data (default: 4; with a budget, what it allots).
        method: Name of the method: "swamp", "imp", "lrr" ...; `swamp list methods` has all (default: "swamp"; with a
            budget, the one that makes the most of it).
        training: How each particle is trained (default: `Training()`).
        budget: Cost of the whole call in dense trainings of `training.epochs` epochs, 2 or more. Numbers of cycles,
            particles and epochs follow from it, without those that are given.
        ticket: "auto": search first for the fewest steps after which copies of the network stay connected at the
            sparsity of the first pruned cycle. The search costs about six trials of three trainings, which no recorded
            cost includes; with `out`, no trial is repeated. Not together with a budget.
        backend: What trains the particles: a backend, or its name, e.g. "threads" (default: the fastest by timing).
        out: Run directory, as `swamp run` makes it. After Ctrl-C, or a killed process, the same call continues and
            gives the same bits; `swamp compare` and `swamp report` read it (default: nothing is kept on disk).
        progress: Show the progress on standard error: bars in a terminal or a notebook, else a line every 30 s.
        track: Trackers to log to: "tensorboard", "wandb", "mlflow", "trackio", an object of a subclass of
            `swamp.tracking.tracker.Tracker`, or a list of them. Losing one changes nothing but a warning.
        on_cycle: Called with each cycle, as soon as it is finished; also with those that are read from `out`.
        **options: Any other field of `Plan`, e.g. seed=1, ticket_epochs=2, exclude=("head.*",).

    Returns:
        The sparse copy with its mask and the record of every cycle.

    Raises:
        SwampError: Before any training: an option is not possible or not used by the method, data or weights are not
            finite, or `out` holds another run.
        Diverged: A training diverged, and `on_divergence` has no way to continue.
        KeyboardInterrupt: Ctrl-C; with `out`, everything up to the last step is saved first.

    Examples:
        >>> import torch, swamp
        >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> y = (x.sum(1) > 0).long()
        >>> task = swamp.Task.of(train=(x[:48], y[:48]), test=(x[48:], y[48:]))
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> how = swamp.Training(epochs=4, batch_size=16)
        >>> sparse = swamp.prune(model, task, sparsity=0.5, particles=2, training=how, barrier_points=0)
        >>> sparse.mask.nnz, sparse.mask.prunable
        (80, 160)

    Source:
        Choi et al., "Sparse Weight Averaging with Multiple Particles for Iterative Magnitude Pruning", ICLR 2024.
    """
    asked, particles = particles is not None, _PARTICLES if particles is None else particles
    counts = (particles,) if isinstance(particles, str) or not isinstance(particles, Iterable) else tuple(particles)
    plan = Plan(method=method or "swamp", sparsity=sparsity, particles=cast(Any, counts), **cast(Any, options))
    how = training or Training()
    given = given_options(options, how, particles=asked and plan.particles != (1,))
    named = {"particles": asked, "method": method is not None}
    fixed = [*given, *(name for name, is_given in named.items() if is_given)]
    if budget is not None:
        if ticket == "auto":
            raise SwampError(
                'a budget is spent in advance, and ticket="auto" costs what its search needs. Give one of them; or '
                "search first (swamp ticket), and give ticket_epochs."
            )
        allotted = allot(plan, how, budget, fixed)
        plan, how = allotted.plan, allotted.training
    if notes := refuse_unused(plan, how, [*given, *(["sparsity"] if sparsity != _SPARSITY else [])]):
        warn(" ".join(notes))
    if ticket == "auto":
        if "ticket_epochs" in options:
            raise SwampError('ticket="auto" finds ticket_epochs. Leave one of them out.')
        # Only here: it imports the analyses.
        from swamp.api.ticket_search import plan_with_stable_ticket

        job = Job(model, task, plan, how, backend)
        plan = plan_with_stable_ticket(job, None if out is None else Path(out), shown=progress)
    record: list[Cycle] = []
    for cycle in cycles(model, task, plan, how, backend=backend, out=out, progress=progress, track=track):
        record.append(cycle)
        if on_cycle is not None:
            on_cycle(cycle)
    return SparseModel.of(model, record)


@checked
def cycles(
    model: nn.Module,
    task: Task,
    plan: Plan,
    training: Training,
    *,
    backend: Backend | str | None = None,
    store: Store | None = None,
    out: Path | str | None = None,
    progress: bool = False,
    track: Track = (),
) -> Iterator[Cycle]:
    """Yield one finished cycle after another, densest first.

    Args:
        model: Architecture and initial weights; it is left unchanged.
        task: Data, loss and metrics.
        plan: What is pruned, how much, in how many cycles.
        training: How each particle is trained.
        backend: What trains the particles, or its name (default: the fastest, found by timing them on the task).
        store: Where finished steps are kept; what it already holds is not computed again.
        out: Run directory, see `prune`; in place of a store.
        progress: See `prune`.
        track: See `prune`; not together with a store.

    Returns:
        An iterator of cycles, each a usable sparse model with its metrics and cost.

    Raises:
        SwampError: Before any training: the plan is not possible, weights or data are not finite, or `out` holds
            another run.
        Diverged: A training diverged, and `plan.on_divergence` has no way to continue.
    """
    if out is not None and store is not None:
        raise SwampError("out and store are two places for finished steps. Give one of them.")
    return job_cycles(Job(model, task, plan, training, backend), store, out, progress=progress, track=track)


def job_cycles(
    job: Job, store: Store | None, out: Path | str | None, *, progress: bool, track: Track
) -> Iterator[Cycle]:
    """The cycles of `job`; see `cycles`."""
    trackers = chosen_trackers(track)
    shown = live_progress() if progress else None
    with shown or nullcontext():
        if shown is not None:
            shown.stage("checking the network and the data", once=True)
        reporter = _reporters(job, out, shown, trackers)
        if out is not None:
            found = stored_cycles(job, Path(out), reporter or Reporter())
        elif reporter is not None and store is None:
            found = job.cycles(_ShownOnly(reporter))
        else:
            found = job.cycles(store or Store())
    return found if reporter is None else _shown(found, reporter, job, started=out is None)


def _reporters(
    job: Job, out: Path | str | None, shown: Reporter | None, trackers: Sequence[str | Tracker]
) -> Reporter | None:
    """What shows and tracks the run; None if nothing does."""
    if not trackers:
        return shown
    tracking = TrackingReporter(trackers, job.config, None if out is None else Path(out), shown)
    return tracking if shown is None else Reporters(shown, tracking)


@checked
def retrain(
    model: nn.Module,
    task: Task,
    ticket: Ticket,
    mask: Mask,
    *,
    particles: int = _PARTICLES,
    method: str = "swamp",
    training: Training | None = None,
    backend: Backend | str | None = None,
    progress: bool = False,
    track: Track = (),
    **options: Unpack[PlanOptions],
) -> SparseModel:
    """Train `mask`, however it was found, from `ticket` by one cycle of `method`.

    This separates the mask from its training: give one mask to two methods, or two masks to one method. Batch orders
    are the ones of cycle 1 of a run with this seed.

    Args:
        model: Architecture; its weights stay as they are.
        task: Data, loss and metrics.
        ticket: Weights at which the particles start.
        mask: Weights that are trained; all others of its parameters are zero. Without `include` and `exclude`, the
            prunable parameters are the ones that it names.
        particles: Number of particles N.
        method: A method that rewinds to a ticket, such as "swamp" or "imp".
        training: See `prune`.
        backend: See `prune`.
        progress: See `prune`.
        track: See `prune`; the files of the trackers are below `tracking` in the working folder.
        **options: See `prune`.

    Returns:
        The trained sparse copy; its record has one cycle.

    Raises:
        SwampError: See `prune`; also for a method that does not rewind.
        Diverged: See `prune`.
    """
    mask.check(model)
    if not mask.nnz:
        raise SwampError("the mask has no active weight, so that there is nothing to train.")
    how = training or Training()
    epochs = ticket.steps / task.train.steps(how.batch_size)
    # The largest number below 1 stands for a dense mask: densities of a plan fall.
    densities, index = (1.0, min(mask.density, math.nextafter(1.0, 0.0))), 1
    # No layer needs a weight: the mask is as it is.
    set_here = {"ticket_epochs": epochs, **_scope_of(mask, model), **options}
    set_here |= {"densities": densities, "min_per_layer": 0}
    plan = Plan(method=method, particles=(particles,), **cast(Any, set_here))
    given = given_options(options, how, particles=particles not in (1, _PARTICLES))
    if notes := refuse_unused(plan, how, given, given_mask=True):
        warn(" ".join(notes))
    trackers = chosen_trackers(track)
    reporter = _reporters(Job(model, task, plan, how, backend), None, live_progress() if progress else None, trackers)
    store = Store() if reporter is None else _ShownOnly(reporter)
    with reporter or nullcontext():
        found = train_on({index: mask}, ticket, model, task, plan, how, backend=backend, store=store)
        if reporter is not None:
            steps = plan.particle_epochs(index, how.epochs) * task.train.steps(how.batch_size)
            particle_steps = (*[0] * index, steps)  # of a cycle before it, none are taken
            count = plan.schedule().particles[index]
            reporter.started(Overview(cycle_steps=(count * steps,), particle_steps=particle_steps))
        return SparseModel.of(model, tuple(found))


@checked
def load_run(path: Path | str, model: nn.Module | None = None) -> SparseModel:
    """The sparse model of a run directory: that of its last finished cycle; of an ensemble, its first member.

    Args:
        path: Run directory, of `prune(..., out=...)` or of `swamp run`.
        model: Architecture, for a run of a model that is a Python object (default: built from the configuration).

    Returns:
        A sparse copy of `model`, its mask, and the record of every finished cycle. A warning says so where the metrics
        of the record are those of an ensemble.

    Raises:
        SwampError: There is no finished cycle, or a file is damaged, or the model is missing or another one.
    """
    directory, config = open_with_cycles(path)
    if model is None:
        origin = read_origin(directory)
        if config.model.startswith(PYTHON_PREFIX):
            raise SwampError(
                f"the model of {path} is a Python object of the class {origin['model']['class']}. Build it and pass "
                f"it: swamp.load_run({str(path)!r}, model)"
            )
        _, model = prepare(config)
    record = [read_cycle(directory, index) for index in range(directory.finished)]
    record[-1].mask.check(model)
    warn_of_first_member(config, record[-1])
    try:
        return SparseModel.of(model, record)
    except RuntimeError as error:
        raise SwampError(f"the model does not fit the run {path}: {final_line(error)}") from error


def _scope_of(mask: Mask, model: nn.Module) -> PlanOptions:
    """The option by which the parameters of a mask are prunable; none where they are those of the default scope.

    `Mask.from_zeros` covers vectors with zeros too.
    """
    with suppress(SwampError):
        if Scope().prunable(model).keys() == mask.keys():
            return {}
    return {"include": tuple(mask)}


def given_options(options: PlanOptions, training: Training, *, particles: bool) -> list[str]:
    """Names of the options that a call gives; of `training` those that differ from the defaults.

    One Training may serve methods with and without SWA, so that its options of SWA are not counted.

    particles: Whether a number of particles is among them.
    """
    dynamic = options.get("dynamic")
    return [
        *(name for name in options if name != "dynamic"),
        *(changed_fields(dynamic) if isinstance(dynamic, Dynamic) else ()),
        *(("particles",) if particles else ()),
        *(name for name in changed_fields(training) if not name.startswith("swa")),
    ]


def _shown(found: Iterator[Cycle], shown: Any, job: Job, *, started: bool) -> Iterator[Cycle]:
    """The cycles, with their progress. started: whether the first lines are printed here."""
    with shown:
        if started:
            shown.started(overview(job.config, job.task, job.model))
        yield from found


@dataclass(frozen=True)
class _ShownOnly(Store):
    """Keeps nothing, and reports the progress."""

    reporter: Reporter

    def keep_choice(self, choice: Choice) -> None:
        self.reporter.chosen(choice)

    def keep_cycle(self, cycle: Cycle) -> None:
        self.reporter.finished(cycle)

    def progress(self, cycle: int | None, particles: int, *, keep: bool = True, trunk: int = 0) -> Progress:
        return ReportedProgress(reporter=self.reporter, cycle=cycle, count=particles, trunk=trunk)
