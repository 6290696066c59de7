"""swamp analyze."""

import shlex
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from swamp.analysis import ANALYSES, Settings, Subject, Unit, analyze, read_analysis
from swamp.cli.session import Err, Out, escaped, parse, print_json, stoppable
from swamp.errors import Interrupted, SwampError, unknown


@dataclass(frozen=True)
class AnalyzeArgs:
    """Look into a run: barriers, curvature, the hull of its particles and more. What was computed is not done again.

    swamp analyze runs/x                             everything, cheap analyses first
    swamp analyze runs/x --only connectivity hull    these alone (see swamp list analyses)
    """

    run: tyro.conf.Positional[Path]
    """Run directory; it may still be going on: finished cycles are looked into."""
    only: tuple[str, ...] = ()
    """Names of analyses (default: all)."""
    examples: int = 2000
    """Examples that losses and errors are taken on, at most."""
    curvature_examples: int = 500
    """Training examples that curvature is taken on, at most (of `examples`); it costs as many times more."""
    corners: int = 1
    """Particles that curvature is taken at in the first, middle and last cycle; at their mean it is in each."""
    points: int = 30
    """Points of a segment between two models."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""
    quiet: bool = False
    """No progress on the terminal."""


def analyze_command(arguments: Sequence[str]) -> None:
    """swamp analyze RUN."""
    given = parse(AnalyzeArgs, "swamp analyze", arguments)
    for name, least in {"examples": 2, "curvature_examples": 2, "corners": 0, "points": 2}.items():
        if getattr(given, name) < least:
            raise SwampError(f"{name} must be {least} or more, got {getattr(given, name)}.")
    work, stop, began = _Work.of(given), Event(), time.monotonic()
    with stoppable(stop):
        try:
            work.through(stop)
        except KeyboardInterrupt:
            stop.set()
        if stop.is_set():
            again = shlex.join(["swamp", "analyze", *arguments])
            raise Interrupted(f"stopped after {work.over} of {len(work.units)} units. To go on: {again}")
    if given.json:
        done = {"made": work.made, "kept": work.kept, "skipped": work.skipped}
        print_json({"run": str(given.run), **done, "seconds": time.monotonic() - began})
        return
    before = f", {work.kept} were there before" if work.kept else ""
    Out.print(f"{work.made} analysed{before}, {len(work.skipped)} skipped.", highlight=False)
    Out.print(f"See them: swamp report {shlex.quote(str(given.run))} -o report.html", soft_wrap=True, highlight=False)


@dataclass
class _Work:
    """The units of the chosen analyses, and what became of them so far."""

    subject: Subject
    settings: Settings
    units: list[tuple[str, Unit]]
    console: Console
    quiet: bool
    made: int = 0
    kept: int = 0
    skipped: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, given: AnalyzeArgs) -> "_Work":
        for name in given.only:
            if name not in ANALYSES:
                raise unknown("analysis", name, ANALYSES)
        settings = Settings(given.examples, given.curvature_examples, given.corners, given.points)
        quiet = given.quiet or (given.json and not Err.is_terminal)
        work = cls(Subject.open(given.run), settings, [], Err if given.json else Out, quiet)
        # In the library's order, whatever that of --only: cheap ones first.
        for name in (name for name in ANALYSES if name in (given.only or ANALYSES)):
            try:
                work.units += [(name, unit) for unit in ANALYSES[name](work.subject, settings)]
            except SwampError as error:
                work.skip(name, error)
        return work

    @property
    def over(self) -> int:
        return self.made + self.kept + sum(unit.key in self.skipped for _, unit in self.units)

    def through(self, stop: Event) -> None:
        """Do unit after unit until all are done or `stop` is set."""
        records = read_analysis(self.subject.directory)
        there = {record["key"] for record in records if record["settings"] == self.settings.__dict__}
        shown = nullcontext() if self.quiet or not self.console.is_terminal else _bar(self.console)
        with shown as bar:
            task = bar.add_task("", total=len(self.units)) if bar else None
            for name, unit in self.units:
                if stop.is_set():
                    return
                if bar and task is not None:
                    bar.update(task, description=unit.key)
                self._do(name, unit, unit.key in there)
                if bar and task is not None:
                    bar.advance(task)

    def _do(self, name: str, unit: Unit, before: bool) -> None:
        def alone(*_: object) -> list[Unit]:
            return [unit]

        began = time.monotonic()
        try:
            # One unit at a time, so that one that cannot be computed takes no other with it.
            for _ in analyze(self.subject, {name: alone}, self.settings):
                pass
        except SwampError as error:
            self.skip(unit.key, error)
            return
        self.kept, self.made = self.kept + before, self.made + (not before)
        if not (before or self.quiet or self.console.is_terminal):
            self.console.print(f"{unit.key}  {time.monotonic() - began:.1f} s", soft_wrap=True, highlight=False)

    def skip(self, key: str, error: SwampError) -> None:
        self.skipped[key] = str(error)
        Err.print(f"[yellow]skipped[/yellow] {escaped(f'{key}: {error}')}", soft_wrap=True, highlight=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2g} units/s" if task.speed else "")


def _bar(console: Console) -> Progress:
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(bar_width=24), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
