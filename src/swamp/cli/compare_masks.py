"""swamp masks."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from swamp.algorithms.registry import method_named
from swamp.analysis import compare_masks
from swamp.analysis.mask_training import MaskSource, shared_densities
from swamp.cli.compare import runs_of
from swamp.cli.session import Out, parse, print_json
from swamp.errors import SwampError


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
    from swamp.report.mask_comparison import MaskOverlaps
    from swamp.report.run_records import label_runs, read_run
    from swamp.report.tables import print_table
    from swamp.report.write import write_finding

    for name in given.methods:
        method_named(name)
    runs = [read_run(path) for path in runs_of(given.runs)]
    runs = [run for run in runs if not given.methods or run.config["method"] in given.methods]
    if len(runs) < 2:
        chosen = f" with the methods {', '.join(given.methods)}" if given.methods else ""
        raise SwampError(f"comparing masks needs two runs or more{chosen}, got {len(runs)}.")
    labels, _ = label_runs(runs)
    sources = {(label, int(r.config["seed"])): MaskSource.open(r.path) for label, r in zip(labels, runs, strict=True)}
    named = {f"{label} {seed}": source for (label, seed), source in sources.items()}
    rows = shared_densities({0: named}, given.sparsities)
    found = MaskOverlaps(tuple(compare_masks(sources, rows)), rows)
    command = shlex.join(["swamp", "masks", *arguments])
    written = [str(path) for path in write_finding(found, given.out, "masks", command)]
    if given.json:
        print_json({**found.to_json(), "files": written})
        return
    for table in found.tables():
        print_table(table, Out)
    Out.print(f"written: {' '.join(written)}", soft_wrap=True)
