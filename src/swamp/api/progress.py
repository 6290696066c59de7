"""Progress of a run: bars in a terminal or a notebook, a line every 30 s elsewhere, and a line for each cycle."""

import math
import sys
import time
from collections.abc import Callable
from html import escape as as_html
from importlib import import_module
from types import TracebackType
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from swamp.algorithms import Cycle
from swamp.api.pace import Pace, duration
from swamp.backends.autotune import Choice
from swamp.runs.overview import Overview
from swamp.runs.run_progress import Reporter, unknown_loss

_REDRAW_SECONDS = 0.1
_ESTIMATE_SECONDS = 1.0
LOG_SECONDS = 30.0
"""Seconds between two lines on the training where no bar can be drawn."""


class Bar(NamedTuple):
    """One progress bar: a name, how much of how much, and text behind it."""

    name: str
    done: int = 0
    total: int | None = None
    text: str = ""


class Bars:
    """Draws three bars in a terminal; draws nothing elsewhere."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.tasks: list[TaskID] = []

    def open(self) -> None:
        """Start drawing."""
        self.progress.start()

    def close(self) -> None:
        """Stop drawing, and remove the bars."""
        self.progress.stop()

    def draw(self, bars: list[Bar]) -> None:
        """Redraw."""
        while len(self.tasks) < len(bars):
            self.tasks.append(self.progress.add_task("", total=None, text=""))
        for task, bar in zip(self.tasks, bars, strict=True):
            self.progress.update(task, description=bar.name, completed=bar.done, total=bar.total, text=bar.text)


class NotebookBars:
    """Draws bars as text in the output of a notebook's cell."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.show, self.html = _display()

    def open(self) -> None:
        """Nothing is drawn before the first step."""

    def close(self) -> None:
        """Remove the bars."""
        if self.handle is not None:
            self.handle.update(self.html(""))

    def draw(self, bars: list[Bar]) -> None:
        """Redraw in place."""
        width = max(len(bar.name) for bar in bars)
        lines = [f"{bar.name:<{width}} {_drawn(bar)} {bar.done:,}/{bar.total or 0:,} {bar.text}" for bar in bars]
        drawing = self.html(f"<pre>{'<br>'.join(map(as_html, lines))}</pre>")
        if self.handle is None:
            self.handle = self.show(drawing, display_id=True)
        else:
            self.handle.update(drawing)


class LiveReporter(Reporter):
    """Progress of a run; a context manager.

    Args:
        console: Where lines are printed, and bars are drawn if it is a terminal.
        notebook: Draw the bars in the output of a notebook's cell instead.
    """

    def __init__(self, console: Console, *, notebook: bool = False) -> None:
        self.console, self.notebook = console, notebook
        self.bars = NotebookBars() if notebook else Bars(console)
        self.interactive = notebook or console.is_terminal
        self.pace = Pace()
        self.shown = [Bar("cycles"), Bar("particles"), Bar("steps")]
        self.headed = self.told = False
        self.drawn = self.logged = time.monotonic()

    def __enter__(self) -> "LiveReporter":
        self.bars.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.close()

    def started(self, run: Overview) -> None:
        """Print what the run does."""
        self.pace, self.told = Pace(run.steps), not run.steps
        if run.text:
            self.console.print(escape(run.text), highlight=False, soft_wrap=True)
        self._draw(0, Bar("cycles", 0, run.cycles))
        if not self.interactive:
            self.console.print(_HEADING)

    def part(self, done: int, parts: int, what: str) -> None:
        """Show that `done` of `parts` tasks, called `what`, are finished."""
        self._draw(0, Bar(what, done, parts))

    def chosen(self, choice: Choice) -> None:
        """Print the chosen backend, and the reason."""
        self.console.print(f"[dim]particles: {choice.backend}, {choice.why}[/dim]", highlight=False, soft_wrap=True)

    def training(
        self,
        cycle: int | None,
        index: int,
        count: int,
        step: int,
        total: int,
        loss: Callable[[], float] = unknown_loss,
    ) -> None:
        """Update the bars, at most 10 times per second; particles may train in parallel."""
        now, pace = time.monotonic(), self.pace
        pace.step(cycle, index, count, step, total, now)
        self._estimate(now)
        if not self.interactive and now - self.logged >= LOG_SECONDS:
            self.logged = now
            self._log(cycle, index, count, f"step {step:,} of {total:,}", loss())
        if now - self.drawn < _REDRAW_SECONDS and step < total:
            return
        self.drawn = now
        name = "ticket" if cycle is None else f"particles of cycle {cycle}"
        steps = pace.stage_steps
        self.shown[0] = self.shown[0]._replace(text=pace.left)
        self.shown[1] = Bar(name, steps // total, count)
        self._draw(2, Bar("steps", steps, count * total, _rate(pace)))

    def finished(self, cycle: Cycle) -> None:
        """Print the line of the cycle and advance the bar of cycles."""
        self.pace.finished(cycle)
        if not self.headed and self.interactive:
            self.console.print(_HEADING)
        self.headed = True
        self.console.print(_line(cycle), highlight=False)
        first = self.shown[0]
        self._draw(0, first._replace(done=first.done + 1))

    def _draw(self, place: int, bar: Bar) -> None:
        self.shown[place] = bar
        if self.interactive:
            self.bars.draw(self.shown)

    def _estimate(self, now: float) -> None:
        """After the first second of training, print once how long all steps take at this rate."""
        pace = self.pace
        if not self.told and pace.seconds > _ESTIMATE_SECONDS:
            self.told = True
            seconds = duration(pace.total / pace.rate)
            self.console.print(f"[dim]about {seconds} of training for all {pace.total:,} steps[/dim]", highlight=False)

    def _log(self, cycle: int | None, index: int, count: int, step: str, loss: float) -> None:
        who = "ticket" if cycle is None else f"cycle {cycle}, particle {index + 1} of {count}"
        parts = [who, step, "" if math.isnan(loss) else f"loss {loss:.4g}", _rate(self.pace), self.pace.left]
        self.console.print(", ".join(part for part in parts if part), highlight=False, markup=False, soft_wrap=True)


def live_progress() -> LiveReporter:
    """Progress of a call from Python, on standard error: bars in a terminal or a notebook, lines elsewhere."""
    notebook = in_notebook()
    return LiveReporter(Console(stderr=True, force_jupyter=False), notebook=notebook)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


def _display() -> tuple[Any, Any]:
    module = import_module("IPython.display")
    return module.display, module.HTML


def _drawn(bar: Bar, width: int = 24) -> str:
    filled = min(width, width * bar.done // bar.total) if bar.total else 0
    return "#" * filled + "-" * (width - filled)


def _rate(pace: Pace) -> str:
    return f"{pace.rate:,.0f} steps/s" if pace.rate else ""


_HEADING = "[bold]cycle  sparsity      test   particles   barrier   seconds[/bold]"


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
