"""Runs that differ in their seeds only, done together: the particles of all are trained at once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Event

from swamp.algorithms import Cycle, cycles_in_step
from swamp.runs.config import RunConfig
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import (
    conclude,
    executing,
    note_session,
    prepare,
    reopened,
    store_of,
    summary,
    write_configuration,
)
from swamp.runs.progress import Reporter
from swamp.runs.read import read_cycle
from swamp.runs.refusals import refuse_foreign
from swamp.runs.space import check_space


def do_in_step(runs: Mapping[Path, RunConfig], reporter: Reporter, stop: Event) -> None:
    """Bring new or begun runs to their ends, cycle by cycle. What is finished of each is kept, whatever ends this.

    Raises SwampError where they cannot be trained at once, where one of them cannot be, and for one that diverges.
    """
    with ExitStack() as locks:
        found: list[tuple[RunDirectory, RunConfig]] = []
        for path, config in runs.items():
            new = RunDirectory(path, config.digest(), strict=True)
            begun = new.config.exists() or new.original.exists()
            found.append(reopened(path) if begun else (new, config))
            if not begun:
                refuse_foreign(new, config)
            locks.enter_context(new.locked())
        rounds, first = _rounds(found, reporter, stop), found[0][1]
        with executing(first):
            for directory, config in found:
                if not directory.config.exists():
                    write_configuration(directory, config)
                note_session(directory, config, at_once=[path.name for path in runs])
            reporter.started(len(first.plan.schedule()))
            count = sum(1 for _ in rounds)
            for directory, config in found:
                # Read back one by one: those of all runs at once would fill the memory.
                conclude(directory, summary(directory, config, map(partial(read_cycle, directory), range(count))))


def _rounds(
    runs: Sequence[tuple[RunDirectory, RunConfig]], reporter: Reporter, stop: Event
) -> Iterator[tuple[Cycle, ...]]:
    """The cycles of all; what can be refused is refused here, before the first step."""
    problems, models = zip(*(prepare(config) for _, config in runs), strict=True)
    first = runs[0][1]
    steps = problems[0].task.train.steps(first.training.batch_size)
    for (directory, config), model in zip(runs, models, strict=True):
        check_space(directory, config, model, steps)
    # All problems go out of sight at the end of this function: what is trained on lies in one piece by then.
    return cycles_in_step(
        models,
        [problem.task for problem in problems],
        [config.plan for _, config in runs],
        first.training,
        backend=first.backend,
        stores=[store_of(config, directory, reporter, stop) for directory, config in runs],
    )
