"""swamp compare."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from swamp.cli.session import Out, parse, print_json
from swamp.errors import SwampError
from swamp.runs.directory import RunDirectory
from swamp.runs.study import BESIDE_RUNS, CompareOptions, Split
from swamp.runs.study_queue import StudyDirectory, is_study


@dataclass(frozen=True)
class CompareArgs:
    """Compare runs: accuracy at each sparsity, mean and 95 % interval over seeds, differences paired by seed.

    swamp compare runs/* --sparsities 0.5 0.9 0.98    only these rows
    swamp compare runs/* --baseline best              differences to the best method at each sparsity
    swamp compare runs/* --at equal-cost              methods by cost, each against the best at no more cost
    swamp compare runs/* --at equal-time              by time, if each particle has a worker of its own
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or the folder of a study: its runs with a finished cycle."""
    out: Path | None = None
    """Folder for compare.csv, .json, .png, .svg and comparison.md (default: comparison, in the folder of the study
    whose runs are given). If it holds a comparison of other runs or options, -2, -3 ... is appended."""
    metric: str = ""
    """accuracy, nll or ece; for text also pearson, rmse, bits_per_byte ... (default: the first metric of the runs)."""
    split: Split = "test"
    """Part of the data that the metric was measured on."""
    baseline: str | None = None
    """Method to compare the others with (default: imp, if it is among the runs); best: the best at each sparsity."""
    sparsities: tuple[float, ...] = ()
    """Only these sparsities, as fractions of the prunable weights: 0.5 0.9 0.98 (default: all)."""
    at: Literal["sparsity", "equal-cost", "equal-time"] = "sparsity"
    """Compare at equal sparsity; at equal training cost (in FLOPs of one dense training; in steps if the FLOPs of a run
    are not known); or at equal time, in steps one after another, if the particles of a cycle train at the same time."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""


def compare_command(arguments: Sequence[str]) -> None:
    """swamp compare RUN..."""
    given = parse(CompareArgs, "swamp compare", arguments)
    from swamp.report.comparison import compare
    from swamp.report.run_records import read_run
    from swamp.report.tables import print_comparison
    from swamp.report.write import free_folder, write_comparison

    if not given.runs:
        raise SwampError("no run was given. Name run directories, e.g.: swamp compare runs/*")
    how = CompareOptions(given.metric, given.split, given.baseline, given.sparsities)
    comparison = compare([read_run(path) for path in runs_of(given.runs)], **asdict(how), at=given.at)
    made_by = made_by_of(given.runs, how, given.at)
    studies = {path if is_study(path) else path.parent for path in given.runs}
    place = studies.pop() if len(studies) == 1 else Path()
    folder = free_folder(given.out or (place if is_study(place) else Path()) / "comparison", made_by)
    written = [str(path) for path in write_comparison(comparison, folder, at=given.at, made_by=made_by)]
    if given.json:
        print_json({**comparison.to_json(), "files": written})
        return
    print_comparison(comparison, Out, at=given.at)
    Out.print(f"written: {' '.join(written)}", soft_wrap=True)


def made_by_of(runs: Sequence[Path], how: CompareOptions, at: str = "sparsity") -> dict[str, Any]:
    """What identifies a comparison: its runs (or their study) and its options."""
    options = {**asdict(how), "sparsities": [*how.sparsities]}  # a list, as it is read from JSON
    return {"runs": [str(path.resolve()) for path in runs], **options, "at": at}


def runs_of(paths: Sequence[Path]) -> list[Path]:
    """Run directories among `paths`; the folder of a study is replaced by its runs, its other folders are left out."""
    found: list[Path] = []
    for path in paths:
        if is_study(path):
            found += StudyDirectory.open(path).begun()
        elif not (
            is_study(path.parent)
            and (path.name in BESIDE_RUNS or path.name.startswith("comparison-"))
            and not RunDirectory(path).config.exists()
        ):
            found.append(path)
    if not found:
        raise SwampError(f"{' '.join(map(str, paths))}: no run has a finished cycle yet.")
    return found
