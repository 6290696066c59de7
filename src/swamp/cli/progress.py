"""Progress of a run on the terminal: bars for cycles, particles and steps, and a line for each finished cycle."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from swamp.algorithms import Cycle
from swamp.backends.autotune import Choice
from swamp.runs.overview import Overview
from swamp.runs.run_progress import NullReporter

_REDRAW_SECONDS = 0.1
_ESTIMATE_SECONDS = 1.0


class OverviewReporter(NullReporter):
    """Prints the first lines of a run, and nothing else."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def started(self, run: Overview) -> None:
        """Print what the run does."""
        self.console.print(escape(run.text), highlight=False, soft_wrap=True)


class LiveReporter:
    """Progress bars and lines; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bars: dict[str, TaskID] = {
            name: self.progress.add_task(name, total=None, rate="") for name in ("cycles", "particles", "steps")
        }
        self.headed = False
        self.drawn = 0.0
        self.began = time.monotonic()
        self.steps = 0
        self.stage: tuple[int | None, int] = (None, 0)
        self.reached: dict[int, int] = {}
        self.expected = 0
        self.first_step: float | None = None
        self.steps_before = 0

    def __enter__(self) -> "LiveReporter":
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)

    def started(self, run: Overview) -> None:
        """Print what the run does."""
        self.expected = run.steps
        if run.text:
            self.console.print(escape(run.text), highlight=False, soft_wrap=True)
        self.progress.update(self.bars["cycles"], total=run.cycles, completed=0)
        if not self.console.is_terminal:
            self.console.print(_heading())

    def part(self, done: int, parts: int, what: str) -> None:
        """Show that `done` of `parts` tasks, called `what`, are finished."""
        self.progress.update(self.bars["cycles"], description=what, total=parts, completed=done)

    def chosen(self, choice: Choice) -> None:
        """Print the chosen backend, and the reason."""
        self.console.print(f"[dim]particles: {choice.backend}, {choice.why}[/dim]", highlight=False, soft_wrap=True)

    def training(self, cycle: int | None, index: int, count: int, step: int, total: int) -> None:
        """Update the bars, at most 10 times per second; particles may train in parallel."""
        if (cycle, count) != self.stage:
            self.stage, self.reached = (cycle, count), {}
        # Not every step of a particle of another rank is reported.
        self.steps += step - self.reached.get(index, step - 1)
        self.reached[index] = step
        now = time.monotonic()
        self._estimate(now)
        if now - self.drawn < _REDRAW_SECONDS and step < total:
            return
        self.drawn = now
        rate = f"{self.steps / (now - self.began):,.0f} steps/s"
        name = "ticket" if cycle is None else f"particles of cycle {cycle}"
        # No step is reported of particles that finished before a resume: lower indices count as done.
        before = min(self.reached)
        steps = before * total + sum(self.reached.values())
        self.progress.update(self.bars["particles"], description=name, total=count, completed=steps // total)
        self.progress.update(self.bars["steps"], total=count * total, completed=steps, rate=rate)

    def _estimate(self, now: float) -> None:
        """After the first second of training, print once how long all steps take at this rate."""
        if self.first_step is None:
            self.first_step, self.steps_before = now, self.steps
        elif self.expected and now - self.first_step > _ESTIMATE_SECONDS:
            seconds = self.expected * (now - self.first_step) / (self.steps - self.steps_before)
            self.console.print(
                f"[dim]about {duration(seconds)} of training for all {self.expected:,} steps[/dim]", highlight=False
            )
            self.expected = 0

    def finished(self, cycle: Cycle) -> None:
        """Print the line of the cycle and advance the bar of cycles."""
        if not self.headed and self.console.is_terminal:
            self.console.print(_heading())
        self.headed = True
        self.console.print(_line(cycle), highlight=False)
        self.progress.advance(self.bars["cycles"])


def print_summary(done: dict[str, Any], console: Console) -> None:
    """Print the metrics of a finished run, beside the dense network, and its directory."""
    table = Table(title=f"{done['method']}: {done['run']}", title_justify="left", box=None, pad_edge=False)
    names = list(done["test"])
    for heading in ("", "sparsity %", "of all weights %", *(f"test {name}" for name in names)):
        table.add_column(heading, justify="right")
    for label, part in (("dense", done["dense"]), ("sparse", done)):
        if part is None:
            continue
        density = part["density"]
        values = (_number(part["test"][name], name) for name in names)
        table.add_row(label, f"{100 * part['sparsity']:.2f}", f"{100 * density['all']:.2f}", *values)
    console.print()
    console.print(table)
    console.print(
        f"\n{done['seconds']:.0f} s of computation. "
        f"Sparse weights for load_state_dict: {done['run']}/model.safetensors\n"
        f"Compare with other runs: swamp compare {done['run']} OTHER...",
        soft_wrap=True,
        highlight=False,
    )


def _heading() -> str:
    return "[bold]cycle  sparsity      test   particles   barrier   seconds[/bold]"


def _line(cycle: Cycle) -> str:
    name = "accuracy" if "accuracy" in cycle.metrics.test else next(iter(cycle.metrics.test))
    members = [particle.metrics.test[name] for particle in cycle.particles]
    inside = _number(sum(members) / len(members), name) if len(members) > 1 else "-"
    height = f"{100 * max(cycle.barrier.pair, cycle.barrier.mean):.2f}" if cycle.barrier else "-"
    test = _number(cycle.metrics.test[name], name)
    seconds = cycle.cost.seconds
    return f"{cycle.index:5d}  {100 * cycle.sparsity:6.2f} %  {test:>8}  {inside:>10}  {height:>8}  {seconds:8.1f}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. '2 h 05 min', '1 min 10 s' or '8 s'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _number(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if name in ("accuracy", "ece") else f"{value:.4f}"
