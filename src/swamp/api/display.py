"""Shows what runs now and how much is left: bars in a terminal or a notebook, a line every 30 s elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from html import escape as as_html
from importlib import import_module
from threading import Event, RLock, Thread
from typing import Any, NamedTuple, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from swamp.api.pace import Pace, duration
from swamp.console import draws_bars
from swamp.runs.run_progress import TrainingStep

_REDRAWS_PER_SECOND = 4
_NOTEBOOK_SECONDS = 0.5
"""Seconds between two drawings in a notebook."""
LOG_SECONDS = 30.0
"""Seconds between two lines where no bar can be drawn."""
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


class LogLines:
    """Prints a line every 30 s where no bar can be drawn; a thread prints it if no step comes, as in an evaluation.

    Args:
        console: Where to print.
        line: Gives the line at a time; `with_step`: with the step and its loss.
        clock: Gives the time in seconds.
        lock: Held while a line is made.
    """

    def __init__(
        self, console: Console, line: Callable[[float, bool], str], clock: Callable[[], float], lock: RLock
    ) -> None:
        self.console, self.line, self.clock, self.lock = console, line, clock, lock
        self.logged, self.ended = clock(), Event()

    def open(self) -> None:
        """Start the thread."""
        self.ended.clear()
        Thread(target=self._wait, name="progress", daemon=True).start()

    def close(self) -> None:
        """End the thread."""
        self.ended.set()

    def redraw(self, now: float, *, news: bool = False) -> None:
        """After a step: print a line if one is due. News, such as another stage, print none."""
        if not news and now - self.logged >= LOG_SECONDS:
            self._print(now, with_step=True)

    def tick(self) -> None:
        """Print a line if one is due and no step has come to print it: a long evaluation, for example."""
        with self.lock:
            now = self.clock()
            if now - self.logged >= LOG_SECONDS + _LATE_SECONDS:
                self._print(now, with_step=False)

    def _print(self, now: float, *, with_step: bool) -> None:
        self.logged = now
        self.console.print(self.line(now, with_step), soft_wrap=True)

    def _wait(self) -> None:
        while not self.ended.wait(1.0):
            self.tick()


class Display:
    """The stage, the bars, the rate and the time left of a long computation; a context manager.

    Args:
        console: Where lines are printed, and bars are drawn if it is a terminal.
        describe: Words for a training: its last step, and the indices of the networks in training.
        units: Names of the bars: of the parts of the work, and of the trainings in a part.
        notebook: Draw the bars in the output of a notebook's cell instead.
        clock: Gives the time in seconds.
    """

    def __init__(
        self,
        console: Console,
        describe: Callable[[TrainingStep, Sequence[int]], str],
        units: tuple[str, str],
        *,
        notebook: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.describe, self.units, self.clock = console, describe, units, clock
        self.pace, self.lock = Pace(), RLock()
        self.outer: Bar | None = None
        """A bar above the others, of work that is a sequence of such computations."""
        self.at: TrainingStep | None = None
        """The last step; None between trainings."""
        self.stage_name, self.began, self.told = "", clock(), False
        self.screen: NotebookBars | TerminalBars | LogLines
        if notebook:
            self.screen = NotebookBars(self.rows)
        elif draws_bars(console):
            self.screen = TerminalBars(console, self.rows)
        else:
            self.screen = LogLines(console, self._line, clock, self.lock)

    def __enter__(self) -> Self:
        self.screen.open()
        return self

    def __exit__(self, *error: Any) -> None:
        self.screen.close()

    @property
    def has_bars(self) -> bool:
        """Whether bars are drawn; else lines are printed."""
        return not isinstance(self.screen, LogLines)

    def print(self, text: str, style: str = "") -> None:
        """Print a line above the bars."""
        self.console.print(text, style=style or None, soft_wrap=True)

    def expect(self, pace: Pace) -> None:
        """The work that is left is now known."""
        with self.lock:
            self.pace, self.told = pace, not pace.cycles

    def stage(self, name: str, *, once: bool = False) -> None:
        """Other work than training begins. once: it is not repeated in every part."""
        with self.lock:
            self.began = now = self.clock()
            self.pace.stage(now, once=once)
            self.stage_name, self.at = name, None
            self.screen.redraw(now, news=True)

    def step(self, at: TrainingStep) -> None:
        """A network has taken a step; several may train in parallel."""
        with self.lock:
            now = self.clock()
            self.pace.step(at.cycle, at.index, at.step, at.total, now, at.trunk)
            self.at = at
            if not self.has_bars:
                self._estimate(now)
            self.screen.redraw(now)

    def finished(self, *lines: str) -> None:
        """A part of the work is finished; print its lines."""
        with self.lock:
            now = self.clock()
            self.pace.finished(now)
            for line in lines:
                self.print(line)
            self.screen.redraw(now, news=True)

    def rows(self) -> tuple[str, list[Bar]]:
        """What runs now, and the bars."""
        with self.lock:
            now, pace, at = self.clock(), self.pace, self.at
            bars: list[Bar] = []
            if at is not None:
                bars.append(Bar("ticket" if at.cycle is None else self.units[1], pace.trainings, at.count))
            if pace.total:
                share = min(1.0, pace.share(at.count)) if at and at.cycle is not None else 0.0
                bars.insert(0, Bar(self.units[0], pace.finished_cycles + share, len(pace.cycles), pace.left(now)))
                bars.append(Bar("steps", pace.done, pace.total, _rate(pace)))
            elif at is not None:
                bars.append(Bar("steps", pace.stage_steps, at.trunk + at.count * (at.total - at.trunk), _rate(pace)))
            return self._stage(now), [*([self.outer] if self.outer else []), *bars]

    def _stage(self, now: float) -> str:
        """What runs now, in words."""
        if self.at is not None:
            return self.describe(self.at, self.pace.active)
        seconds = now - self.began
        return f"{self.stage_name} ({duration(seconds)})" if seconds >= 2 else self.stage_name

    def _estimate(self, now: float) -> None:
        """Once the rate is known, print how long the work takes."""
        if not self.told and (left := self.pace.left(now)):
            self.told = True
            remaining = self.pace.total - self.pace.done
            self.print(f"{left}: {remaining:,} of {self.pace.total:,} steps, and evaluation", "dim")

    def _line(self, now: float, with_step: bool) -> str:
        parts = [self._stage(now)]
        if with_step and self.at is not None:
            loss = self.at.loss()
            parts += [f"step {self.at.step:,} of {self.at.total:,}", "" if math.isnan(loss) else f"loss {loss:.4g}"]
            parts.append(_rate(self.pace))
        return ", ".join(part for part in (*parts, self.pace.left(now)) if part)


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
