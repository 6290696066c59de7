"""Instability analysis (Frankle et al. 2020), and the search for the earliest stable step to rewind to."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from swamp.algorithms import Plan
from swamp.analysis.barriers import evaluate_segment
from swamp.analysis.point_evaluator import PointEvaluator
from swamp.backends import Backend, Particle, Progress, Ticket, TrainRequest
from swamp.errors import CorruptFile, SwampError
from swamp.files import one_at_a_time, write_atomic
from swamp.masks import Mask, prune_mask
from swamp.masks.parametrized import slices_of
from swamp.runs.directory import add_checksum, verify_checksum
from swamp.training import Seed, Task, Training

TRIALS_FILE = "trials.jsonl"


@dataclass(frozen=True)
class RewindTrial:
    """The barrier measured for a ticket taken after `steps` training steps."""

    steps: int
    barrier: float
    """Error barrier, in [0, 1], between two copies trained from the ticket."""
    seconds: float
    repeat: int
    """Number of the pair of batch orders: 0 in the search, 1 in the verification."""


@dataclass(frozen=True)
class RewindSearchResult:
    """The rewind step that `search_rewind_step` found, and all measured barriers."""

    steps: int | None
    """The earliest stable step found; None if not even the last one is stable."""
    trials: tuple[RewindTrial, ...]
    """The measured barriers, in the order of measurement; the verification is last."""
    confirmed: bool
    """Whether, with other batch orders, the ticket is stable at `steps` and unstable at a quarter of it."""


def search_rewind_step(
    barrier_at: Callable[[int, int], float],
    last: int,
    *,
    threshold: float = 0.02,
    resolution: float = 0.1,
    on_trial: Callable[[RewindTrial], None] = lambda trial: None,
    on_start: Callable[[int, int, int], None] = lambda step, repeat, left: None,
) -> RewindSearchResult:
    """Find the earliest step in [0, last] at which the error barrier is below `threshold`.

    Bisection on a logarithmic scale, as networks become stable early in training. It assumes that a ticket stays stable
    after its first stable step. The result is verified by two more trials with other batch orders: at the step found,
    and at a quarter of it, which must be unstable.

    Args:
        barrier_at: (step, repeat) -> error barrier in [0, 1]; each repeat uses other batch orders.
        last: the latest step to try.
        threshold: the error barrier below which a ticket is stable.
        resolution: stop when the bracket is smaller than this fraction of the step (0: exact to one step).
        on_trial: called after every trial.
        on_start: called before every trial with its step, its repeat, and the expected number of trials that are left,
            this one included.

    Raises:
        SwampError: last < 0, resolution is not in [0, 1), or threshold is not above 0.

    Examples:
        >>> found = search_rewind_step(lambda step, repeat: 0.0 if step >= 17 else 0.1, 1000, resolution=0)
        >>> found.steps, found.confirmed
        (17, True)
    """
    if last < 0 or not 0 <= resolution < 1:
        raise SwampError(f"last must be 0 or more and resolution in [0, 1), got {last} and {resolution}.")
    if not threshold > 0:
        raise SwampError(f"threshold must be above 0, got {threshold}.")
    trials: list[RewindTrial] = []

    def stable(steps: int, left: int, repeat: int = 0) -> bool:
        on_start(steps, repeat, left)
        started = time.perf_counter()
        barrier = barrier_at(steps, repeat)
        trials.append(RewindTrial(steps, barrier, time.perf_counter() - started, repeat))
        on_trial(trials[-1])
        return barrier < threshold

    def left(low: int, high: int) -> int:
        """Trials with those of the verification: each step tried in between counts as unstable."""
        count = 2 if high else 1
        while (middle := _between(low, high, resolution)) is not None:
            low, count = middle, count + 1
        return count

    if not stable(last, left(0, last) + (2 if last else 1)):
        return RewindSearchResult(None, tuple(trials), False)
    low, high = 0, last
    if last and stable(0, left(0, last) + 1):
        high = 0
    while (middle := _between(low, high, resolution)) is not None:
        low, high = (low, middle) if stable(middle, left(low, high)) else (middle, high)
    again = stable(high, left(low, high), 1)
    # Step 0 has no earlier step that could be unstable.
    confirmed = again and (not high or not stable(high // 4, 1, 1))
    return RewindSearchResult(high, tuple(trials), confirmed)


def _between(low: int, high: int, resolution: float) -> int | None:
    """The next step to try between an unstable and a stable one; None: they are close enough."""
    if high - low <= max(1, resolution * high):
        return None
    return min(max(round((max(low, 1) * high) ** 0.5), low + 1), high - 1)


@dataclass(eq=False)
class InstabilityAnalysis:
    """Barriers between two copies trained from tickets of one dense training, at one sparsity.

    The ticket, its training and the training of the copies are those of a run with this plan and training; the copies
    differ in batch order only. At a sparsity above 0 they are trained on the mask that magnitude pruning (with the
    plan's allocation, structure and minimum per layer) gives for a dense network trained from the same ticket.
    """

    model: nn.Module
    """The network with its initial weights."""
    task: Task
    plan: Plan
    training: Training
    backend: Backend
    sparsity: float
    """Sparsity of the copies, as a fraction of the prunable weights."""
    points: int = 30
    """Points on the segment between the copies."""
    progress: Callable[[str, int], Progress] = lambda what, networks: Progress()
    """(what is trained or measured, number of networks) -> receives the reports of these trainings."""

    def __post_init__(self) -> None:
        method = self.plan.spec
        if method.independent:
            raise SwampError(f"{self.plan.method} has no ticket: it starts from the initial weights.")
        if not 0 <= self.sparsity < 1:
            raise SwampError(f"the sparsity of the copies must lie in [0, 1), got {self.sparsity:g}.")
        self.dense = Mask.ones(self.model, self.plan.scope)
        self.per_epoch = self.task.train.steps(self.training.batch_size)
        self.seed = Seed(self.plan.seed)
        self.ticket_training = self.training.plain()
        self.advance = self.training.lr_after_rewind == "advance"
        self.options, self.training = self.training, self.plan.training(self.training, 0)
        self._evaluator = PointEvaluator(self.model, self.task, examples=self.plan.evaluation_examples)

    @property
    def _kept(self) -> int:
        return round((1 - self.sparsity) * self.dense.prunable)

    @property
    def _pruned(self) -> bool:
        return self._kept < self.dense.nnz

    @property
    def last(self) -> int:
        """The latest step at which a run can take its ticket."""
        return self.ticket_training.epochs * self.per_epoch - self.advance

    def barrier_at(self, steps: int, repeat: int = 0) -> float:
        """The error barrier between two copies trained from the ticket after `steps` steps."""
        ticket = self.ticket(steps)
        mask = self.mask(ticket)
        seeds = [self.seed.at("instability", repeat, "copy", i) for i in range(2)]
        one, other = self.train(ticket, mask, seeds, "training both copies")
        self.progress("", 0).on_stage("measuring the barrier between the copies")
        return evaluate_segment(self._evaluator, one.weights, other.weights, self.points).barriers.error

    def ticket(self, steps: int) -> Ticket:
        """The ticket of a run after `steps` steps of its dense training."""
        ticket = Ticket(self.model.state_dict(), 0)
        if not steps:
            return ticket
        seeds = [(0, self.seed.at("ticket"))]
        progress = self.progress("training the ticket", 1)
        request = TrainRequest(ticket, self.dense, self.ticket_training, seeds, last=steps, progress=progress)
        (trained,) = self.backend.train(request)
        return Ticket(trained.weights, steps, trained.state)

    def mask(self, ticket: Ticket) -> Mask:
        """The mask that the copies of this ticket are trained on."""
        if not self._pruned:
            return self.dense
        seeds = [self.seed.at("cycle", 0, "particle", 0)]
        (trained,) = self.train(ticket, self.dense, seeds, "training the dense network")
        scores = {name: trained.weights[name].abs() for name in self.dense}
        plan = self.plan
        return prune_mask(
            self.dense,
            scores,
            self._kept,
            allocation=plan.allocation_name,
            structure=plan.structure,
            min_per_layer=plan.min_per_layer,
            slices=slices_of(self.model),
        )

    def train(self, ticket: Ticket, mask: Mask, seeds: list[Seed], what: str) -> list[Particle]:
        """Train one copy of the ticket per seed, as the particles of a run. what: words for the progress."""
        first = self._first(ticket.steps)
        numbered = list(enumerate(seeds))
        request = TrainRequest(ticket, mask, self.training, numbered, first, progress=self.progress(what, len(seeds)))
        return self.backend.train(request)

    @property
    def examples(self) -> int:
        """Held-out examples on which barriers are measured."""
        return len(self._evaluator.data)

    @property
    def evaluation(self) -> float:
        """Estimated cost of measuring one barrier, in training steps: a forward pass costs a third of a step."""
        return self.points * self.examples / (3 * self.training.batch_size)

    def trainings(self, steps: int) -> list[int]:
        """Optimizer steps of each training of the trial with the ticket after `steps` steps, in their order."""
        each = self.training.epochs * self.per_epoch - self._first(steps)
        return [*([steps] if steps else []), *([each] if self._pruned else []), each, each]

    def _first(self, steps: int) -> int:
        """Step of the schedule at which training from the ticket after `steps` steps starts."""
        return self.plan.first_step(0, steps, self.options)

    def to_json(self, trial: RewindTrial) -> dict[str, Any]:
        """The values of a trial, and its step in epochs."""
        return {**trial.__dict__, "epochs": trial.steps / self.per_epoch}


class TrialLog:
    """The trials of one search (a configuration and a sparsity) in a folder, so that none is run twice.

    Args:
        folder: where the file of trials is.
        question: identifies the search, as plain JSON values.

    Raises:
        SwampError: the folder holds the trials of another search.
        CorruptFile: the file is damaged.
    """

    def __init__(self, folder: Path, question: dict[str, Any]) -> None:
        self.folder, self.question = folder, question
        self.file = folder / TRIALS_FILE
        self._trials = list(self._read())

    def __iter__(self) -> Iterator[RewindTrial]:
        return iter(self._trials)

    def barrier(self, measure: Callable[[int, int], float], steps: int, repeat: int) -> float:
        """The barrier of this trial from the file; measured if it is not there."""
        known = {(trial.steps, trial.repeat): trial.barrier for trial in self._trials}
        return known[steps, repeat] if (steps, repeat) in known else measure(steps, repeat)

    def add(self, trial: RewindTrial) -> None:
        """Write a trial to the file, unless it is there."""
        with one_at_a_time(self.folder / f".{TRIALS_FILE}.lock"):
            found = {(other.steps, other.repeat): other for other in self._read()}
            found.setdefault((trial.steps, trial.repeat), trial)
            self._trials = list(found.values())
            lines = [{"question": self.question}, *map(asdict, self._trials)]
            write_atomic(self.file, "".join(json.dumps(add_checksum(line)) + "\n" for line in lines).encode())

    def _read(self) -> Iterator[RewindTrial]:
        if not self.file.exists():
            return
        try:
            lines = self.file.read_bytes().splitlines()
        except OSError as error:
            raise CorruptFile(f"{self.file} cannot be read ({error.strerror}). Move or delete it.") from error
        if not lines:
            raise CorruptFile(f"{self.file} is damaged: it is empty. Delete it: its trials are run again.")
        for number, line in enumerate(lines):
            where = f"{self.file}, line {number + 1}"
            try:
                values, _ = verify_checksum(json.loads(line), where)
                if number:
                    yield msgspec.convert(values, RewindTrial)
                    continue
                question = values["question"]
            except (ValueError, KeyError, TypeError, CorruptFile) as error:
                raise CorruptFile(
                    f"{where} is damaged ({error}). Delete the file: its trials are run again."
                ) from error
            if question != self.question:
                raise SwampError(
                    f"{self.file} holds the trials of another search ({question}, not {self.question}). "
                    "Choose another folder."
                )
