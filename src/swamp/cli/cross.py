"""swamp cross."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import tyro

from swamp.algorithms import method_named
from swamp.analysis import Pair, Side, cross
from swamp.analysis.cross import densities, pairs
from swamp.cli.compare import runs_of
from swamp.cli.progress import Live, Quiet
from swamp.cli.session import Err, Out, escaped, parse, print_json, stoppable
from swamp.errors import Interrupted, SwampError


@dataclass(frozen=True)
class CrossArgs:
    """Is it the mask, or how it was trained? Train the masks of runs by each other's training, from their ticket.

    swamp cross runs/imp-0 runs/swamp-0              two runs of one seed: a table of two masks by two trainings

    swamp cross runs/* --sparsities 0.9 0.98         all seeds there are, paired; a study's folder is taken too

    swamp cross STUDY --methods imp swamp            two methods of a study of many

    Runs of a seed must share the very ticket. A run's masks with its own training are its own cycles, and are read;
    the others are trained now, each with the batch orders that the run has whose training it is. What is finished is
    not trained again: after an interruption, the same command goes on.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, two or more of each seed; or a study's folder."""
    out: Path = Path("cross")
    """Folder for cross.json, .md, .png, .svg, and for what is trained."""
    methods: tuple[str, ...] = ()
    """Only the runs of these methods (default: all)."""
    sparsities: tuple[float, ...] = ()
    """Only these sparsities, as fractions of the prunable weights (default: all above 0 that runs of a seed share)."""
    metric: str = ""
    """Any that the runs measured (default: accuracy, or the first they have)."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""
    quiet: bool = False
    """No progress on the terminal."""


def cross_command(arguments: Sequence[str]) -> None:
    """swamp cross RUN RUN..."""
    given = parse(CrossArgs, "swamp cross", arguments)
    if not given.runs:
        raise SwampError("no run was given. Name two or more of one seed, e.g.: swamp cross runs/imp-0 runs/swamp-0")
    from swamp.report import MaskByTraining, print_table, write_finding

    command = shlex.join(["swamp", "cross", *arguments])
    metric, labels, runs = _labelled(given)
    rows = densities(runs, given.sparsities)
    cells = _trained(given, runs, rows, command)
    crossed = MaskByTraining.of(cells, labels, rows, metric)
    written = [str(path) for path in write_finding(crossed, given.out, "cross", command)]
    if given.json:
        print_json({**crossed.to_json(), "files": written})
        return
    for table in crossed.tables():
        print_table(table, Out)
    Out.print(f"written: {' '.join(written)}", soft_wrap=True, highlight=False)


def _labelled(given: CrossArgs) -> tuple[str, list[str], dict[int, dict[str, Side]]]:
    """The metric, the labels (imp first), and the runs: seed -> label -> run, of seeds that have two or more."""
    from swamp.report import label_runs, metric_of, read_run

    for name in given.methods:
        method_named(name)
    runs = [read_run(path) for path in runs_of(given.runs)]
    runs = [run for run in runs if not given.methods or run.config["method"] in given.methods]
    metric = metric_of(runs, given.metric, "test")
    labels, notes = label_runs(runs)
    for note in notes:
        Err.print(f"[yellow]note:[/yellow] {escaped(note)}", soft_wrap=True, highlight=False)
    order = sorted(dict.fromkeys(labels), key=lambda label: label != "imp")
    seeds = dict.fromkeys(sorted(run.config["seed"] for run in runs))
    at = {(run.config["seed"], label): run.path for run, label in zip(runs, labels, strict=True)}
    found = {seed: {label: at[seed, label] for label in order if (seed, label) in at} for seed in seeds}
    several = {seed: paths for seed, paths in found.items() if len(paths) > 1}
    if not several:
        raise SwampError(
            f"no seed has two runs among these ({len(runs)} runs of {', '.join(order) or 'no method'}). Give two or "
            "more runs of each seed that differ in how they train: --method imp and --method swamp, say."
        )
    order = [label for label in order if any(label in paths for paths in several.values())]
    sides = {seed: {label: Side.open(path) for label, path in paths.items()} for seed, paths in several.items()}
    return metric, order, sides


def _trained(
    given: CrossArgs, runs: Mapping[int, Mapping[str, Side]], rows: Sequence[float], command: str
) -> list[dict[str, Any]]:
    """All cells, with progress and signals."""
    todo, stop = pairs(runs, rows), Event()
    console = Err if given.json else Out
    quiet = given.quiet or (given.json and not Err.is_terminal)
    begun: list[Pair] = []
    with stoppable(stop), ExitStack() as shown:
        reporter = Quiet() if quiet else shown.enter_context(Live(console))

        def tell(pair: Pair) -> None:
            left = sum(other.seconds for other in todo[len(begun) :]) / 60
            begun.append(pair)
            if not quiet:
                what = f"masks of {pair.masks}, trained by {pair.training}, seed {pair.seed}"
                console.print(
                    f"\n{len(begun)} of {len(todo)}: {what} (about {left:.1f} min left, less what is there already)",
                    soft_wrap=True,
                    highlight=False,
                    markup=False,
                )
            reporter.started(len(pair.cycles))

        try:
            return cross(runs, rows, given.out, reporter, stop, tell)
        except Interrupted as error:
            raise Interrupted(f"{error} Go on with: {command}") from error
