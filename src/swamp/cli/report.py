"""swamp report, swamp watch and swamp figure."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Literal

import tyro

from swamp.cli.compare import runs_of
from swamp.cli.session import Err, Out, parse, print_json, signals, warnings_to
from swamp.errors import SwampError, unknown

_Runs = tyro.conf.Positional[tuple[Path, ...]]
_MIB = 2**20


@dataclass(frozen=True)
class ReportArgs:
    """Write one HTML page about runs: accuracy, cost, analyses. The page works offline.

    swamp report runs/x -o report.html
    swamp report runs/* -o report.html               methods and seeds side by side
    """

    runs: _Runs
    """Run directories, or the folder of a study."""
    out: Path = Path("report.html")
    """File to write."""
    metric: str = ""
    """accuracy, nll or ece; for text also pearson, rmse, bits_per_byte ... (default: the first metric of the runs)."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""


@dataclass(frozen=True)
class WatchArgs:
    """Serve the report of runs in progress, to this machine only; the page updates itself. Ctrl-C ends the server."""

    runs: _Runs
    """Run directories, or the folder of a study."""
    port: int = 8765
    """Port on 127.0.0.1; 0: any free port."""


@dataclass(frozen=True)
class FigureArgs:
    """Draw one figure of the report for a paper.

    swamp figure runs/* --which accuracy -o accuracy.pdf
    """

    runs: _Runs
    """Run directories, or the folder of a study."""
    which: str = "accuracy"
    """accuracy, particles, barrier, curvature, hull, waves, averaging, noise, landscape, paths, layers, masks,
    predictions or cost."""
    out: Path | None = None
    """File to write (default: named like the figure); the second and later figures get -2, -3 ... appended."""
    format: Literal["pdf", "svg", "png"] | None = None
    """File format (default: by the suffix of the file, else pdf)."""
    metric: str = ""
    """accuracy, nll or ece; for text also pearson, rmse, bits_per_byte ... (default: the first metric of the runs)."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""


def report_command(arguments: Sequence[str]) -> None:
    """swamp report RUN..."""
    given = parse(ReportArgs, "swamp report", arguments)
    from swamp.report.page import write_report

    size = write_report(_run_paths(given.runs), given.out, metric=given.metric)
    if given.json:
        print_json({"report": str(given.out), "bytes": size})
        return
    Out.print(f"written: {given.out} ({size / _MIB:.1f} MiB)", soft_wrap=True)


def watch_command(arguments: Sequence[str]) -> None:
    """swamp watch RUN..."""
    given = parse(WatchArgs, "swamp watch", arguments)
    if not 0 <= given.port < 2**16:
        raise SwampError(f"port must be from 0 to 65535, got {given.port}.")
    from swamp.report.serve import LivePage, PageServer

    runs = _run_paths(given.runs, in_progress=True)
    for run in runs:
        if not run.is_dir():
            raise SwampError(f"{run} is not a directory. Give the directory of a run, in progress or finished.")
    stop = Event()
    with signals(stop), warnings_to(Err), PageServer(LivePage(runs), given.port) as server:
        Out.print(f"The report is at {server.url} while this command runs; Ctrl-C ends it.")
        # Not stop.wait(): without a timeout, it delays signal handlers on some systems.
        while not stop.is_set():
            time.sleep(0.2)


def figure_command(arguments: Sequence[str]) -> None:
    """swamp figure RUN..."""
    given = parse(FigureArgs, "swamp figure", arguments)
    from swamp.report.figures import SECTIONS
    from swamp.report.matplotlib_renderer import FORMATS
    from swamp.report.write import draw_figure

    if given.which not in SECTIONS:
        raise unknown("figure", given.which, SECTIONS)
    named = given.out.suffix[1:].lower() if given.out else ""
    if given.format and named in FORMATS and named != given.format:
        raise SwampError(f"--format is {given.format}, and {given.out} is named as {named}. Leave one of them out.")
    suffix = given.format or named or "pdf"
    if suffix not in FORMATS:
        raise unknown("format", suffix, FORMATS)
    out = given.out or Path(f"{given.which}.{suffix}")
    written = [str(path) for path in draw_figure(_run_paths(given.runs), given.which, out, suffix, metric=given.metric)]
    if given.json:
        print_json({"figures": written})
        return
    Out.print(f"written: {' '.join(written)}", soft_wrap=True)


def _run_paths(runs: Sequence[Path], *, in_progress: bool = False) -> list[Path]:
    """Run directories, at least one. in_progress: a single run needs no finished cycle yet."""
    if not runs:
        raise SwampError("no run was given. Name run directories, e.g.: swamp report runs/*")
    return list(runs) if in_progress and len(runs) == 1 and (runs[0] / "config.json").exists() else runs_of(runs)
