"""Progress of a run for a person: the stage and the bars of a Display, and a line for each cycle."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from swamp.algorithms import Cycle
from swamp.api.display import Bar, Display, in_notebook
from swamp.api.pace import Pace
from swamp.backends.autotune import Choice
from swamp.console import plain_console
from swamp.runs.overview import Overview
from swamp.runs.run_progress import Reporter, TrainingStep


class LiveReporter(Reporter):
    """Shows the events of a run on a Display; a context manager.

    Args:
        console: See Display.
        notebook: See Display.
        clock: See Display.
    """

    def __init__(
        self, console: Console, *, notebook: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.display = Display(console, _described, ("cycles", "particles"), notebook=notebook, clock=clock)
        self.headed = False

    def __enter__(self) -> "LiveReporter":
        self.display.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.display.__exit__(*error)

    def started(self, run: Overview) -> None:
        """Print what the run does."""
        self.display.expect(Pace(run.cycle_steps, run.ticket_steps, run.evaluation))
        if run.text:
            self.display.print(run.text)
        if not self.display.has_bars:
            self._print_heading()

    def part(self, done: int, parts: int, what: str) -> None:
        """Show that `done` of `parts` tasks, called `what`, are finished."""
        self.display.outer = Bar(what, done, parts)
        self.display.pace.restart()

    def chosen(self, choice: Choice) -> None:
        """Print the chosen backend, and the reason."""
        self.display.print(f"particles: {choice.backend}, {choice.why}", "dim")

    def stage(self, name: str, *, once: bool = False) -> None:
        """Show that other work than training begins."""
        self.display.stage(name, once=once)

    def training(self, at: TrainingStep) -> None:
        """Show the step."""
        self.display.step(at)

    def finished(self, cycle: Cycle) -> None:
        """Print the line of the cycle."""
        if not self.headed:
            self._print_heading()
        self.display.finished(_line(cycle))
        if cycle.waves:
            self.display.print(f"       {cycle.waves[-1].sentence}", "dim")

    def _print_heading(self) -> None:
        self.headed = True
        self.display.print("cycle  sparsity      test   particles   barrier   seconds", "bold")


def live_progress() -> LiveReporter:
    """Progress of a call from Python, on standard error: bars in a terminal or a notebook, lines elsewhere."""
    return LiveReporter(plain_console(stderr=True, force_jupyter=False), notebook=in_notebook())


def _described(at: TrainingStep, active: Sequence[int]) -> str:
    """What is trained, in words."""
    if at.cycle is None and at.count == 1:
        return "training the ticket"
    if at.in_trunk:
        return f"cycle {at.cycle}, training the trunk of {at.count} particles"
    which = f"{active[0] + 1}" if len(active) == 1 else f"{active[0] + 1} to {active[-1] + 1}"
    if at.cycle is None:
        return f"training ticket {which} of {at.count}"
    return f"cycle {at.cycle}, training particle{'s' if len(active) > 1 else ''} {which} of {at.count}"


def _line(cycle: Cycle) -> str:
    name = "accuracy" if "accuracy" in cycle.metrics.test else next(iter(cycle.metrics.test))
    members = [particle.metrics.test[name] for particle in cycle.particles]
    inside = number(sum(members) / len(members), name) if len(members) > 1 else "-"
    height = f"{100 * cycle.barrier.higher:.2f}" if cycle.barrier else "-"
    test = number(cycle.metrics.test[name], name)
    seconds = cycle.cost.seconds
    return f"{cycle.index:5d}  {100 * cycle.sparsity:6.2f} %  {test:>8}  {inside:>10}  {height:>8}  {seconds:8.1f}"


def number(value: float | None, name: str) -> str:
    """A metric as text: fractions as percentages."""
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if name in ("accuracy", "ece") else f"{value:.4f}"
