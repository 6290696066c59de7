"""swamp cross and swamp masks."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import tyro

from swamp.algorithms.registry import method_named
from swamp.analysis import compare_masks
from swamp.analysis.mask_training import MaskSource, MaskTraining, cross_train, mask_trainings, shared_densities
from swamp.api.progress import LiveReporter
from swamp.cli.compare import runs_of
from swamp.cli.session import Err, Out, parse, print_json, print_labelled, stoppable
from swamp.errors import Interrupted, SwampError
from swamp.report.mask_comparison import MaskByTraining, MaskOverlaps
from swamp.report.run_records import RunRecord, label_runs, read_run
from swamp.runs.overview import Overview
from swamp.runs.run_progress import Reporter


@dataclass(frozen=True)
class CrossArgs:
    """Mask or training? Train the masks of each run with the training of each other run, from their common ticket.

      swamp cross runs/imp-0 runs/swamp-0              two runs with one seed: a table of two masks by two trainings
      swamp cross runs/* --sparsities 0.9 0.98         several seeds, paired; the folder of a study also works
      swamp cross STUDY --methods imp swamp            two methods of a study

    Runs with the same seed must have the same ticket. Masks with the training of their own run are read from that run;
    the other combinations are trained now, with the batch orders of the run whose training is used. Finished cycles
    are not trained again: after an interruption, repeat the command to continue.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, two or more per seed; or the folder of a study."""
    out: Path = Path("cross")
    """Folder for cross.json, .md, .png, .svg, and for the trained cycles."""
    methods: tuple[str, ...] = ()
    """Use only the runs of these methods (default: all)."""
    sparsities: tuple[float, ...] = ()
    """Sparsities, as fractions of the prunable weights (default: all above 0 that the runs of a seed share)."""
    metric: str = ""
    """A metric of the runs (default: accuracy, or their first metric)."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""
    quiet: bool = False
    """Show no progress."""


def cross_command(arguments: Sequence[str]) -> None:
    """swamp cross RUN RUN..."""
    given = parse(CrossArgs, "swamp cross", arguments)
    if not given.runs:
        raise SwampError("no run was given. Give two or more with one seed, e.g.: swamp cross runs/imp-0 runs/swamp-0")
    command = shlex.join(["swamp", "cross", *arguments])
    metric, lower, labels, runs = _labelled(given)
    rows = shared_densities(runs, given.sparsities)
    cells = _trained(given, runs, rows, command)
    _finish(MaskByTraining.of(cells, labels, rows, metric, lower), given, "cross", command)


def _labelled(given: CrossArgs) -> tuple[str, bool, list[str], dict[int, dict[str, MaskSource]]]:
    """The metric, whether lower is better, the labels (imp first), and seed -> label -> run.

    Seeds with one run are left out.
    """
    from swamp.report.comparison import lower_better, metric_of

    runs = _chosen(given)
    metric = metric_of(runs, given.metric, "test")
    labels, notes = label_runs(runs)
    for note in notes:
        print_labelled(Err, "note:", "yellow", note)
    order = sorted(dict.fromkeys(labels), key=lambda label: label != "imp")
    seeds = dict.fromkeys(sorted(run.config["seed"] for run in runs))
    at = {(run.config["seed"], label): run.path for run, label in zip(runs, labels, strict=True)}
    found = {seed: {label: at[seed, label] for label in order if (seed, label) in at} for seed in seeds}
    several = {seed: paths for seed, paths in found.items() if len(paths) > 1}
    if not several:
        raise SwampError(
            f"no seed has two runs ({len(runs)} runs of {', '.join(order) or 'no method'} were given). Give two or "
            "more runs per seed that differ in their training, e.g. --method imp and --method swamp."
        )
    order = [label for label in order if any(label in paths for paths in several.values())]
    sources = {seed: {label: MaskSource.open(path) for label, path in paths.items()} for seed, paths in several.items()}
    return metric, lower_better(runs, metric), order, sources


def _trained(
    given: CrossArgs, runs: Mapping[int, Mapping[str, MaskSource]], rows: Sequence[float], command: str
) -> list[dict[str, Any]]:
    """Train all combinations, with progress and signal handling; return the cells of the table."""
    jobs, stop = mask_trainings(runs, rows), Event()
    console = Err if given.json else Out
    started: list[MaskTraining] = []
    with stoppable(stop, console), ExitStack() as shown:
        reporter = Reporter() if given.quiet else shown.enter_context(LiveReporter(console))

        def on_start(job: MaskTraining) -> None:
            minutes = sum(other.seconds for other in jobs[len(started) :]) / 60
            started.append(job)
            if not given.quiet:
                what = f"masks of {job.masks}, training of {job.training}, seed {job.seed}"
                console.print(
                    f"\n{len(started)} of {len(jobs)}: {what} (at most about {minutes:.1f} min left)",
                    soft_wrap=True,
                )
            reporter.started(Overview())

        try:
            return cross_train(runs, rows, given.out, reporter, stop, on_start)
        except Interrupted as error:
            raise Interrupted(f"{error} To continue: {command}") from error


@dataclass(frozen=True)
class MasksArgs:
    """Compare the masks of every two runs: overlap, its expectation for random masks, and equal signs, also by layer.

    swamp masks runs/imp-* runs/swamp-*              several methods and seeds
    swamp masks STUDY --methods imp swamp            two methods of a study
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or the folder of a study."""
    out: Path = Path("masks")
    """Folder for masks.json, .md, .png and .svg."""
    methods: tuple[str, ...] = ()
    """Use only the runs of these methods (default: all)."""
    sparsities: tuple[float, ...] = ()
    """Sparsities, as fractions of the prunable weights (default: all above 0 that all runs share)."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""


def masks_command(arguments: Sequence[str]) -> None:
    """swamp masks RUN RUN..."""
    given = parse(MasksArgs, "swamp masks", arguments)
    if not given.runs:
        raise SwampError("no run was given. Give two or more, e.g.: swamp masks runs/imp-0 runs/swamp-0")
    runs = _chosen(given)
    if len(runs) < 2:
        chosen = f" with the methods {', '.join(given.methods)}" if given.methods else ""
        raise SwampError(f"comparing masks needs two runs or more{chosen}, got {len(runs)}.")
    labels, _ = label_runs(runs)
    sources = {(label, int(r.config["seed"])): MaskSource.open(r.path) for label, r in zip(labels, runs, strict=True)}
    named = {f"{label} {seed}": source for (label, seed), source in sources.items()}
    rows = shared_densities({0: named}, given.sparsities)
    found = MaskOverlaps(tuple(compare_masks(sources, rows)), rows)
    _finish(found, given, "masks", shlex.join(["swamp", "masks", *arguments]))


def _chosen(given: CrossArgs | MasksArgs) -> list[RunRecord]:
    """The given runs, of these methods only."""
    for name in given.methods:
        method_named(name)
    runs = [read_run(path) for path in runs_of(given.runs)]
    return [run for run in runs if not given.methods or run.config["method"] in given.methods]


def _finish(finding: MaskByTraining | MaskOverlaps, given: CrossArgs | MasksArgs, name: str, command: str) -> None:
    """Write a finding, and print it."""
    from swamp.report.tables import print_table
    from swamp.report.write import write_finding

    written = [str(path) for path in write_finding(finding, given.out, name, command)]
    if given.json:
        print_json({**finding.to_json(), "files": written})
        return
    for table in finding.tables():
        print_table(table, Out)
    Out.print(f"written: {' '.join(written)}", soft_wrap=True)
