"""swamp noise."""

import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import tyro

from swamp.analysis import SOURCES, NoiseSettings, Sources, Subject, Unit, analyze
from swamp.cli.progress import Live, Quiet
from swamp.cli.session import Err, Out, escaped, parse, print_json, stoppable
from swamp.errors import Interrupted, SwampError, unknown


@dataclass(frozen=True)
class NoiseArgs:
    """What makes particles differ, and which of it pays? Train particles that differ in one thing at a time.

    swamp noise runs/x                               all sources, at the last cycle
    swamp noise runs/x --cycle 3 --only order rate   these alone

    Particles of one cycle are trained again from its ticket on its mask, by the run's own training, and differ in
    nothing (a control: their distance must be 0), the order of batches, augmentation, dropout, the learning rate,
    a last layer initialised anew, or in all that differs in a run. Results stay in the run directory, and are not made
    twice; each source costs as much training as a cycle with so many particles.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    cycle: int = -1
    """Which cycle's mask (default: the last finished one)."""
    only: tuple[str, ...] = ()
    """Sources: none, order, augmentation, dropout, rate, head, all (default: every one)."""
    particles: int = 4
    """Particles of each source."""
    spread: float = 0.1
    """Learning rates go from 1 - spread to 1 + spread times the run's own."""
    examples: int = 2000
    """Examples that losses and errors are taken on, at most."""
    points: int = 30
    """Points of the segment between two particles."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""
    quiet: bool = False
    """No progress on the terminal."""


def noise_command(arguments: Sequence[str]) -> None:
    """swamp noise RUN."""
    given = parse(NoiseArgs, "swamp noise", arguments)
    for name in given.only:
        if name not in SOURCES:
            raise unknown("source", name, SOURCES)
    for name in ("examples", "points"):
        if getattr(given, name) < 2:
            raise SwampError(f"{name} must be 2 or more, got {getattr(given, name)}.")
    settings = NoiseSettings(
        examples=given.examples, points=given.points, particles=given.particles, spread=given.spread
    )
    records = _records(given, settings, shlex.join(["swamp", "noise", *arguments]))
    none = next((record for record in records if record["source"] == "none"), None)
    if none and not none.get("identical"):
        Err.print(
            "[yellow]warning:[/yellow] two trainings that differ in nothing ended apart: arithmetic is not repeatable "
            "here, and distances like theirs say nothing.",
            soft_wrap=True,
        )
    if given.json:
        print_json({"run": str(given.run), "sources": {record["source"]: record for record in records}})
        return
    _print(given, records)


def _records(given: NoiseArgs, settings: NoiseSettings, command: str) -> list[Mapping[str, Any]]:
    """Of all sources, with progress and signals."""
    quiet = given.quiet or (given.json and not Err.is_terminal)
    stop, found = Event(), list[Mapping[str, Any]]()
    console = Err if given.json else Out
    with stoppable(stop), ExitStack() as shown:
        reporter = Quiet() if quiet else shown.enter_context(Live(console))
        subject = Subject.open(given.run)
        cycle = subject.cycles - 1 if given.cycle == -1 else given.cycle
        units = [*Sources(subject, cycle, settings, reporter, stop).units([n for n in SOURCES if n in _named(given)])]
        try:
            for done, unit in enumerate(units):
                reporter.part(done, len(units), "sources")
                began = time.monotonic()
                # One at a time, so that what is finished is written whatever becomes of the next.
                found += analyze(subject, {"noise": partial(_alone, unit)}, settings)
                if not (quiet or console.is_terminal):
                    console.print(f"{unit.key}  {time.monotonic() - began:.1f} s", soft_wrap=True, highlight=False)
        except Interrupted as error:
            done = f"{len(found)} of {len(units)} sources are done"
            raise Interrupted(f"{error} {done}. Go on with: {command}") from error
    return found


def _named(given: NoiseArgs) -> Sequence[str]:
    return given.only or [*SOURCES]


def _alone(unit: Unit, *_: object) -> list[Unit]:
    return [unit]


def _print(given: NoiseArgs, records: Sequence[Mapping[str, Any]]) -> None:
    from swamp.report import noise_table, print_table

    made = [record for record in records if "skipped" not in record]
    for record in records:
        if "skipped" in record:
            Out.print(f"{record['source']}: left out, {escaped(record['skipped'])}.", highlight=False, soft_wrap=True)
    if not made:
        return
    title = f"Cycle {made[0]['cycle']}, {100 * made[0]['sparsity']:.2f} % sparse: particles that differ in one thing"
    below = (
        f"Errors are of {made[0]['data']} data; the gain is the particles' mean error minus the error of their mean."
    )
    print_table(noise_table(title, made, below), Out)
    picture = f"swamp figure {shlex.quote(str(given.run))} --which noise -o noise.pdf"
    Out.print(f"Draw it: {picture}", soft_wrap=True, highlight=False)
