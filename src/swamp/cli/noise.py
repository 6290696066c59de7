"""swamp noise."""

import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import tyro

from swamp.analysis.ablations import FACTORS, AblationSettings, ParticleAblation
from swamp.analysis.analysis_tasks import analyze
from swamp.analysis.run_data import RunData
from swamp.api.progress import LiveReporter
from swamp.cli.session import Err, Out, parse, print_json, print_labelled, stoppable
from swamp.console import draws_bars
from swamp.errors import Interrupted, unknown
from swamp.fields import check_at_least
from swamp.runs.run_progress import Reporter


@dataclass(frozen=True)
class NoiseArgs:
    """Which difference between particles makes averaging work? Train particles that differ in one factor at a time.

      swamp noise runs/x                               all factors, at the last cycle
      swamp noise runs/x --cycle 3 --only order rate   only these factors

    Particles of one cycle are trained again from its ticket on its mask, with the training of the run. They differ in
    nothing (a control: their distance must be 0), the order of batches, augmentation, dropout, the learning rate,
    a newly initialised last layer, or in everything that differs in a run. Results are stored in the run directory and
    not computed again. Each factor costs as much training as a cycle with --particles particles.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    cycle: int = -1
    """The cycle whose mask is used (default: the last finished cycle)."""
    only: tuple[str, ...] = ()
    """Factors: none, order, augmentation, dropout, rate, head, all (default: every factor)."""
    particles: int = 4
    """Particles per factor."""
    lr_spread: float = 0.1
    """Learning rates lie between 1 - X and 1 + X times the learning rate of the run."""
    examples: int = 2000
    """Maximum number of examples that losses and errors are measured on."""
    points: int = 30
    """Number of points on the segment between two particles."""
    model: str = ""
    """For a run that was started from Python: package.module:function, or file.py:function, that makes its model."""
    task: str = ""
    """Function that makes its task, likewise."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""
    quiet: bool = False
    """Show no progress."""


def noise_command(arguments: Sequence[str]) -> None:
    """swamp noise RUN."""
    given = parse(NoiseArgs, "swamp noise", arguments)
    for name in given.only:
        if name not in FACTORS:
            raise unknown("factor", name, FACTORS)
    check_at_least(given, 2, "examples", "points")
    settings = AblationSettings(
        examples=given.examples, points=given.points, particles=given.particles, lr_spread=given.lr_spread
    )
    records = _records(given, settings, shlex.join(["swamp", "noise", *arguments]))
    control = next((record for record in records if record["factor"] == "none"), None)
    if control and not control.get("identical"):
        print_labelled(
            Err,
            "warning:",
            "yellow",
            "two identical trainings ended with different weights: training is not deterministic here, and distances "
            "of this size have no meaning.",
        )
    if given.json:
        print_json({"run": str(given.run), "factors": {record["factor"]: record for record in records}})
        return
    _print(given, records)


def _records(given: NoiseArgs, settings: AblationSettings, command: str) -> list[Mapping[str, Any]]:
    """Compute the records of all factors, with progress and signal handling."""
    stop, found = Event(), list[Mapping[str, Any]]()
    console = Err if given.json else Out
    with stoppable(stop, console), ExitStack() as shown:
        reporter = Reporter() if given.quiet else shown.enter_context(LiveReporter(console))
        run = RunData.open(given.run, given.model, given.task)
        cycle = run.cycles - 1 if given.cycle == -1 else given.cycle
        factors = [factor for factor in FACTORS if factor in (given.only or FACTORS)]
        tasks = [*ParticleAblation(run, cycle, settings, reporter, stop).tasks(factors)]
        try:
            for done, task in enumerate(tasks):
                reporter.part(done, len(tasks), "factors")
                started = time.monotonic()
                found += analyze(run, [task], settings)
                if not (given.quiet or draws_bars(console)):
                    console.print(f"{task.key}  {time.monotonic() - started:.1f} s", soft_wrap=True)
        except Interrupted as error:
            done = f"{len(found)} of {len(tasks)} factors are done"
            raise Interrupted(f"{error} {done}. To continue: {command}") from error
    return found


def _print(given: NoiseArgs, records: Sequence[Mapping[str, Any]]) -> None:
    from swamp.report.figures.spread import noise_table
    from swamp.report.tables import print_table

    computed = [record for record in records if "skipped" not in record]
    for record in records:
        if "skipped" in record:
            Out.print(f"{record['factor']}: skipped, {record['skipped']}.", soft_wrap=True)
    if not computed:
        return
    first = computed[0]
    title = f"Cycle {first['cycle']}, {100 * first['sparsity']:.2f} % sparse: particles that differ in one factor"
    below = f"Errors are of {first['data']} data; the gain is the particles' mean error minus the error of their mean."
    print_table(noise_table(title, computed, below), Out)
    picture = f"swamp figure {shlex.quote(str(given.run))} --which noise -o noise.pdf"
    Out.print(f"Draw a figure: {picture}", soft_wrap=True)
