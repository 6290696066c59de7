"""Progress of a study: running and finished runs, rate, time left; without a terminal as a line every 30 s."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self, get_args

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from swamp.api.display import LOG_SECONDS
from swamp.api.pace import duration
from swamp.console import draws_bars
from swamp.runs.study_queue import RunState, RunStatus, StudyDirectory

_MOST_ROWS = 12


class LiveTable:
    """A table that is redrawn at the bottom of a terminal; a context manager. Elsewhere `live` is None.

    Args:
        console: Where lines are printed, and the table is drawn if it is a terminal.
        clock: Gives the time in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self.console, self.clock = console, clock
        self.live = Live(console=console, transient=True, auto_refresh=False) if draws_bars(console) else None
        self.began, self.logged = clock(), -math.inf

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live:
            self.live.stop()


class StudyProgress(LiveTable):
    """Shows the states of the runs of a study; a context manager.

    Args:
        study: The study.
        console: Where lines are printed, and bars are drawn if it is a terminal.
        clock: Gives the time in seconds.
    """

    def __init__(self, study: StudyDirectory, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self.study, self.done_before = study, dict[str, float]()
        self.printed: set[str] | None = None

    def show(self, states: Sequence[RunState]) -> None:
        """Print a line for each run that ended since the last call, and redraw the running ones.

        Where no bar can be drawn, print a line on all runs at the first call, and every 30 s.
        """
        ended = [state for state in states if state.state in ("finished", "failed")]
        if self.printed is None:
            self.printed = {state.name for state in ended}
            self.began, self.done_before = self.clock(), {state.name: state.done for state in states}
            if ended:
                self.console.print(f"{len(ended)} of {len(states)} runs ended earlier and are not repeated.")
        for state in ended:
            if state.name not in self.printed:
                before = self.printed.copy()
                self.printed.add(state.name)
                place = f"[{len(self.printed):{len(str(len(states)))}d}/{len(states)}]"
                self.console.print(f"{place} {self._line(state, before, states)}", soft_wrap=True)
        if self.live:
            self.live.update(self._drawing(states), refresh=True)
        elif len(ended) < len(states) and self.clock() - self.logged >= LOG_SECONDS:
            self.logged = self.clock()
            done, total = self._epochs(states)
            self.console.print(f"{counted(states)}; {done:g} of {total:g} epochs, {self._pace(states)}", soft_wrap=True)

    def _line(self, state: RunState, before: set[str], states: Sequence[RunState]) -> str:
        """What is printed of a run that ended. before: the runs that ended before it."""
        if state.state == "failed":
            text, names = next(group for group in failures(states) if state.name in group[1])
            earlier = next((name for name in names if name in before), None)
            return f"{state.name} failed as {earlier} did" if earlier else f"{state.name} failed: {text}"
        done = self.study.summary(state.name)
        return f"{state.name}: sparsity {100 * done['sparsity']:.2f} %, test {reached(done)}, {done['seconds']:.1f} s"

    def _drawing(self, states: Sequence[RunState]) -> Group:
        running = [state for state in states if state.state == "running"]
        table = Table(box=None, pad_edge=False, show_header=False)
        for state in running[:_MOST_ROWS]:
            bar = ProgressBar(total=state.total, completed=state.done, width=24)
            table.add_row(state.name, bar, f"{state.done:g}/{state.total:g} epochs", state.worker)
        if len(running) > _MOST_ROWS:
            table.add_row(f"and {len(running) - _MOST_ROWS} more")
        done, total = self._epochs(states)
        whole = Table(box=None, pad_edge=False, show_header=False)
        whole.add_row("study", ProgressBar(total=total, completed=done, width=24), counted(states))
        return Group(table, whole, self._pace(states))

    def _epochs(self, states: Sequence[RunState]) -> tuple[float, float]:
        """Epochs of training that are done, and all of them."""
        return sum(state.done for state in states), sum(state.total for state in states)

    def _pace(self, states: Sequence[RunState]) -> str:
        done, total = self._epochs(states)
        # A run that fails loses the epochs that it had before this command started.
        since = sum(max(0.0, state.done - self.done_before[state.name]) for state in states)
        rate = since / max(self.clock() - self.began, 1e-9)
        if not rate:
            return "no rate yet: no particle has finished since this command started"
        return f"{rate:,.3g} epochs/s, about {duration((total - done) / rate)} left"


def counted(states: Sequence[RunState]) -> str:
    """Number of runs in each state, e.g. '3 finished, 1 failed, 2 running, 6 waiting'."""
    counts = Counter(state.state for state in states)
    return ", ".join(f"{counts[name]} {name}" for name in get_args(RunStatus) if counts[name])


def failures(states: Sequence[RunState]) -> list[tuple[str, list[str]]]:
    """Each message of failed runs, once, with the names of these runs."""
    groups: dict[str, list[RunState]] = {}
    for state in states:
        if state.state == "failed":
            # Messages that name the directory of the run differ in nothing else.
            groups.setdefault(last_line(state.error).replace(f"/{state.name}/", "/"), []).append(state)
    return [(last_line(alike[0].error), [state.name for state in alike]) for alike in groups.values()]


def last_line(text: str) -> str:
    """The last line that is not empty; in a traceback, this is the error."""
    return text.strip().rpartition("\n")[2]


def reached(done: dict[str, Any]) -> str:
    """The accuracy in a summary, or the first metric if there is no accuracy."""
    test: dict[str, float | None] = done["test"]
    name = "accuracy" if "accuracy" in test else next(iter(test))
    value = test[name]
    if value is None:
        return f"{name} not finite"
    return f"accuracy {100 * value:.2f} %" if name == "accuracy" else f"{name} {value:.4f}"
