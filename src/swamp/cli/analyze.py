"""swamp analyze."""

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, RLock

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from swamp.analysis import ANALYSES
from swamp.analysis.analysis_tasks import AnalysisSettings, AnalysisTask, analyze, read_analysis
from swamp.analysis.run_data import RunData
from swamp.api.display import LogLines
from swamp.api.pace import duration
from swamp.cli.session import Err, Out, beside, parse, print_json, print_labelled, stoppable
from swamp.console import draws_bars
from swamp.errors import Interrupted, SwampError, unknown
from swamp.fields import check_at_least


@dataclass(frozen=True)
class AnalyzeArgs:
    """Analyse a run: barriers, curvature, hull of the particles and more. Results are stored and not computed again.

    swamp analyze runs/x                           everything, cheap analyses first
    swamp analyze runs/x --only barriers hull      only these (see swamp list analyses)
    """

    run: tyro.conf.Positional[Path]
    """Run directory; the run may be in progress: its finished cycles are analysed."""
    only: tuple[str, ...] = ()
    """Names of analyses (default: all)."""
    examples: int = 2000
    """Maximum number of examples that losses and errors are measured on."""
    curvature_examples: int = 500
    """Maximum number of training examples for curvature (at most --examples); the cost is proportional to it."""
    curvature_particles: int = 1
    """Particles whose curvature is measured in the first, middle and last cycle. The mean is measured in each cycle."""
    points: int = 30
    """Number of points on a segment between two models."""
    model: str = ""
    """For a run that was started from Python: package.module:function, or file.py:function, that makes its model."""
    task: str = ""
    """Function that makes its task, likewise."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""
    quiet: bool = False
    """Show no progress."""


def analyze_command(arguments: Sequence[str]) -> None:
    """swamp analyze RUN."""
    given = parse(AnalyzeArgs, "swamp analyze", arguments)
    check_at_least(given, 2, "examples", "curvature_examples", "points")
    check_at_least(given, 0, "curvature_particles")
    session, stop, started = _Session.of(given), Event(), time.monotonic()
    with stoppable(stop, session.console):
        try:
            session.run_all(stop)
        except KeyboardInterrupt:
            stop.set()
        if stop.is_set():
            again = shlex.join(["swamp", "analyze", *arguments])
            raise Interrupted(f"stopped after {session.finished} of {len(session.tasks)} tasks. To continue: {again}")
    if given.json:
        counts = {"computed": session.computed, "kept": session.kept, "skipped": session.skipped}
        print_json({"run": str(given.run), **counts, "seconds": time.monotonic() - started})
        return
    before = f", {session.kept} read from disk" if session.kept else ""
    Out.print(f"{session.computed} computed{before}, {len(session.skipped)} skipped.")
    Out.print(f"Show them: swamp report {shlex.quote(str(given.run))} -o report.html", soft_wrap=True)


@dataclass
class _Session:
    """The tasks of the chosen analyses, and how many are finished."""

    run: RunData
    settings: AnalysisSettings
    tasks: list[AnalysisTask]
    console: Console
    quiet: bool
    computed: int = 0
    kept: int = 0
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    running: str = ""
    """Key of the present task; `began`: when it was started."""
    began: float = 0.0

    @classmethod
    def of(cls, given: AnalyzeArgs) -> "_Session":
        for name in given.only:
            if name not in ANALYSES:
                raise unknown("analysis", name, ANALYSES)
        settings = AnalysisSettings(given.examples, given.curvature_examples, given.curvature_particles, given.points)
        run = RunData.open(given.run, given.model, given.task)
        session = cls(run, settings, [], Err if given.json else Out, given.quiet)
        # In the order of ANALYSES, not of --only: cheap ones first.
        for name in (name for name in ANALYSES if name in (given.only or ANALYSES)):
            try:
                session.tasks += ANALYSES[name](session.run, settings)
            except SwampError as error:
                session.skip(name, error)
        return session

    @property
    def finished(self) -> int:
        return self.computed + self.kept + sum(task.key in self.skipped for task in self.tasks)

    def run_all(self, stop: Event) -> None:
        """Run the tasks in order until all are finished or `stop` is set."""
        records = read_analysis(self.run.directory)
        stored = {record["key"] for record in records if record["settings"] == self.settings.__dict__}
        with ExitStack() as shown:
            bar = shown.enter_context(_bar(self.console)) if not self.quiet and draws_bars(self.console) else None
            line = bar.add_task("", total=len(self.tasks)) if bar else None
            lines = LogLines(self.console, self._line, time.monotonic, RLock())
            if not (self.quiet or bar):
                shown.callback(lines.close)
                lines.open()
            for task in self.tasks:
                if stop.is_set():
                    return
                self.running, self.began = task.key, time.monotonic()
                lines.logged = self.began
                if bar and line is not None:
                    bar.update(line, description=task.key)
                self._run_one(task, task.key in stored)
                if bar and line is not None:
                    bar.advance(line)

    def _line(self, now: float, with_step: bool) -> str:
        """What runs now, for a log."""
        return f"{self.running} ({duration(now - self.began)}), {self.finished} of {len(self.tasks)} tasks finished"

    def _run_one(self, task: AnalysisTask, stored: bool) -> None:
        try:
            # One task per call: a task that fails does not stop the others.
            list(analyze(self.run, [task], self.settings))
        except SwampError as error:
            self.skip(task.key, error)
            return
        self.kept, self.computed = self.kept + stored, self.computed + (not stored)
        if not (stored or self.quiet or draws_bars(self.console)):
            self.console.print(f"{task.key}  {time.monotonic() - self.began:.1f} s", soft_wrap=True)

    def skip(self, key: str, error: SwampError) -> None:
        self.skipped[key] = str(error)
        print_labelled(beside(self.console), "skipped", "yellow", f"{key}: {error}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2g} tasks/s" if task.speed else "")


def _bar(console: Console) -> Progress:
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(bar_width=24), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
