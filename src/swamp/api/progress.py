"""Progress of a run: bars in a terminal or a notebook, a line every 30 s elsewhere, and a line for each cycle."""

import math
import sys
import time
from collections.abc import Callable
from html import escape as as_html
from importlib import import_module
from threading import Event, RLock, Thread
from types import TracebackType
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from swamp.algorithms import Cycle
from swamp.api.pace import Pace, duration
from swamp.backends.autotune import Choice
from swamp.console import plain_console
from swamp.runs.overview import Overview
from swamp.runs.run_progress import Reporter, TrainingStep

_REDRAWS_PER_SECOND = 4
_NOTEBOOK_SECONDS = 0.5
"""Seconds between two drawings in a notebook."""
LOG_SECONDS = 30.0
"""Seconds between two lines on the training where no bar can be drawn."""
_LATE_SECONDS = 5.0
"""If no step comes for so long after a line is due, the line has no step and no loss."""
_WIDTH = 24


class Bar(NamedTuple):
    """One progress bar: a name, how much of how much, and text behind it."""

    name: str
    done: float = 0
    total: int = 0
    text: str = ""

    @property
    def counted(self) -> str:
        """How much of how much, e.g. '1,200/8,649'."""
        return f"{int(self.done):,}/{self.total:,}"


class TerminalBars:
    """Draws bars at the bottom of a terminal; `rows` gives them. rich's thread redraws, so that training never waits.

    Args:
        console: A terminal.
        rows: Gives the line above the bars, and the bars.
    """

    def __init__(self, console: Console, rows: Callable[[], tuple[str, list[Bar]]]) -> None:
        self.rows = rows
        self.live = Live(
            console=console,
            get_renderable=self.drawing,
            refresh_per_second=_REDRAWS_PER_SECOND,
            transient=True,
            vertical_overflow="crop",
        )

    def open(self) -> None:
        """Start drawing."""
        self.live.start(refresh=True)

    def close(self) -> None:
        """Stop drawing, and remove the bars."""
        self.live.stop()

    def redraw(self, now: float, *, news: bool = False) -> None:
        """Nothing to do: a thread redraws."""

    def drawing(self) -> Group:
        """The present state."""
        stage, bars = self.rows()
        table = Table.grid(padding=(0, 2))
        for _ in range(4):
            table.add_column(no_wrap=True, overflow="ellipsis")
        for bar in bars:
            table.add_row(bar.name, ProgressBar(bar.total, bar.done, _WIDTH), bar.counted, bar.text)
        return Group(Text(stage, no_wrap=True, overflow="ellipsis"), table)


class NotebookBars:
    """Draws bars as text in the output of a notebook's cell, when there is news; see TerminalBars."""

    def __init__(self, rows: Callable[[], tuple[str, list[Bar]]]) -> None:
        self.rows, self.handle, self.drawn = rows, None, -math.inf
        self.show, self.html = _display()

    def open(self) -> None:
        """Nothing is drawn before the first stage."""

    def close(self) -> None:
        """Remove the bars."""
        if self.handle is not None:
            self.handle.update(self.html(""))

    def redraw(self, now: float, *, news: bool = False) -> None:
        """Redraw in place: at most twice a second, but always for news, such as another stage."""
        if not news and now - self.drawn < _NOTEBOOK_SECONDS:
            return
        self.drawn = now
        stage, bars = self.rows()
        lines = [stage, *(f"{bar.name:<10}{_drawn(bar)}  {bar.counted:<14} {bar.text}" for bar in bars)]
        drawing = self.html(f"<pre>{'<br>'.join(map(as_html, lines))}</pre>")
        if self.handle is None:
            self.handle: Any = self.show(drawing, display_id=True)
        else:
            self.handle.update(drawing)


class LiveReporter(Reporter):
    """Progress of a run; a context manager.

    Args:
        console: Where lines are printed, and bars are drawn if it is a terminal.
        notebook: Draw the bars in the output of a notebook's cell instead.
        clock: Gives the time in seconds.
    """

    def __init__(
        self, console: Console, *, notebook: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console, self.clock = console, clock
        self.pace, self.lock = Pace(), RLock()
        self.parts: Bar | None = None
        self.stage_name, self.began = "", clock()
        self.training_of: tuple[int | None, int, int] | None = None
        """Cycle (None: ticket), number of particles, last step; None between trainings."""
        self.headed = self.told = False
        self.logged = clock()
        self.ended = Event()
        # Not where colours are forced for a log, as in CI.
        terminal = console.is_interactive and console.file.isatty()
        self.bars = NotebookBars(self.rows) if notebook else TerminalBars(console, self.rows) if terminal else None

    def __enter__(self) -> "LiveReporter":
        self.ended.clear()
        if self.bars is not None:
            self.bars.open()
        else:
            Thread(target=self._log_late, name="progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        if self.bars is not None:
            self.bars.close()

    def started(self, run: Overview) -> None:
        """Print what the run does."""
        with self.lock:
            self.pace, self.told = Pace(run.cycle_steps, run.ticket_steps, run.evaluation), not run.cycle_steps
            if run.text:
                self.console.print(run.text, soft_wrap=True)
            if self.bars is None:
                self.console.print(_HEADING, style="bold")

    def part(self, done: int, parts: int, what: str) -> None:
        """Show that `done` of `parts` tasks, called `what`, are finished."""
        with self.lock:
            self.parts = Bar(what, done, parts)
            self.pace.restart()

    def chosen(self, choice: Choice) -> None:
        """Print the chosen backend, and the reason."""
        self.console.print(f"particles: {choice.backend}, {choice.why}", style="dim", soft_wrap=True)

    def stage(self, name: str, *, once: bool = False) -> None:
        """Show that other work than training begins."""
        with self.lock:
            self.began = now = self.clock()
            self.pace.stage(now, once=once)
            self.stage_name, self.training_of = name, None
            self._redraw(now)

    def training(self, at: TrainingStep) -> None:
        """Note the step; particles may train in parallel. Every 30 s, print a line where no bar can be drawn."""
        with self.lock:
            now = self.clock()
            self.pace.step(at.cycle, at.index, at.step, at.total, now)
            self.training_of = at.cycle, at.count, at.total
            if self.bars is not None:
                self.bars.redraw(now)
                return
            self._estimate(now)
            if now - self.logged >= LOG_SECONDS:
                self.logged = now
                self._log(f"step {at.step:,} of {at.total:,}", at.loss(), now)

    def finished(self, cycle: Cycle) -> None:
        """Print the line of the cycle."""
        with self.lock:
            now = self.clock()
            self.pace.finished(now)
            if not self.headed and self.bars is not None:
                self.console.print(_HEADING, style="bold")
            self.headed = True
            self.console.print(_line(cycle))
            self._redraw(now)

    def tick(self) -> None:
        """Print a line if one is due and no step has come to print it: a long evaluation, for example."""
        with self.lock:
            now = self.clock()
            if now - self.logged >= LOG_SECONDS + _LATE_SECONDS:
                self.logged = now
                self._log("", math.nan, now)

    def rows(self) -> tuple[str, list[Bar]]:
        """What the run does now, and the bars."""
        with self.lock:
            now, pace = self.clock(), self.pace
            bars: list[Bar] = []
            steps, whole = pace.stage_steps, math.inf
            if self.training_of is not None:
                _, count, last = self.training_of
                whole = count * last
                bars.append(Bar("ticket" if self.training_of[0] is None else "particles", steps / last, count))
            if pace.total:
                share = min(1.0, steps / whole) if self.training_of and self.training_of[0] is not None else 0.0
                bars.insert(0, Bar("cycles", pace.finished_cycles + share, len(pace.cycles), pace.left(now)))
                bars.append(Bar("steps", pace.done, pace.total, _rate(pace)))
            elif self.training_of is not None:
                bars.append(Bar("steps", steps, int(whole), _rate(pace)))
            return self._stage(now), [*([self.parts] if self.parts else []), *bars]

    def _redraw(self, now: float) -> None:
        if self.bars is not None:
            self.bars.redraw(now, news=True)

    def _stage(self, now: float) -> str:
        """What the run does now, in words."""
        if self.training_of is None:
            seconds = now - self.began
            return f"{self.stage_name} ({duration(seconds)})" if seconds >= 2 else self.stage_name
        cycle, count, _ = self.training_of
        if cycle is None and count == 1:
            return "training the ticket"
        active = self.pace.active
        which = f"{active[0] + 1}" if len(active) == 1 else f"{active[0] + 1} to {active[-1] + 1}"
        if cycle is None:
            return f"training ticket {which} of {count}"
        return f"cycle {cycle}, training particle{'s' if len(active) > 1 else ''} {which} of {count}"

    def _estimate(self, now: float) -> None:
        """Once the rate is known, print how long the run takes."""
        if not self.told and (left := self.pace.left(now)):
            self.told = True
            remaining = self.pace.total - self.pace.done
            self.console.print(f"{left}: {remaining:,} of {self.pace.total:,} steps, and evaluation", style="dim")

    def _log(self, step: str, loss: float, now: float) -> None:
        rate = _rate(self.pace) if step else ""
        parts = [self._stage(now), step, "" if math.isnan(loss) else f"loss {loss:.4g}", rate, self.pace.left(now)]
        self.console.print(", ".join(part for part in parts if part), soft_wrap=True)

    def _log_late(self) -> None:
        while not self.ended.wait(1.0):
            self.tick()


def live_progress() -> LiveReporter:
    """Progress of a call from Python, on standard error: bars in a terminal or a notebook, lines elsewhere."""
    return LiveReporter(plain_console(stderr=True, force_jupyter=False), notebook=in_notebook())


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


def _display() -> tuple[Any, Any]:
    module = import_module("IPython.display")
    return module.display, module.HTML


def _drawn(bar: Bar) -> str:
    filled = min(_WIDTH, int(_WIDTH * bar.done / bar.total)) if bar.total else 0
    return "#" * filled + "-" * (_WIDTH - filled)


def _rate(pace: Pace) -> str:
    return f"{pace.rate:,.3g} steps/s" if 0 < pace.rate < 100 else f"{pace.rate:,.0f} steps/s" if pace.rate else ""


_HEADING = "cycle  sparsity      test   particles   barrier   seconds"


def _line(cycle: Cycle) -> str:
    name = "accuracy" if "accuracy" in cycle.metrics.test else next(iter(cycle.metrics.test))
    members = [particle.metrics.test[name] for particle in cycle.particles]
    inside = number(sum(members) / len(members), name) if len(members) > 1 else "-"
    height = f"{100 * max(cycle.barrier.pair, cycle.barrier.mean):.2f}" if cycle.barrier else "-"
    test = number(cycle.metrics.test[name], name)
    seconds = cycle.cost.seconds
    return f"{cycle.index:5d}  {100 * cycle.sparsity:6.2f} %  {test:>8}  {inside:>10}  {height:>8}  {seconds:8.1f}"


def number(value: float | None, name: str) -> str:
    """A metric as text: fractions as percentages."""
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if name in ("accuracy", "ece") else f"{value:.4f}"
