"""Writes comparisons, tables and figures to files, each complete or not at all."""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from swamp.errors import SwampError
from swamp.files import write_atomic
from swamp.report.comparison import At, Comparison
from swamp.report.figures import SECTIONS
from swamp.report.figures.outcome import accuracy_figure, equal_cost_figure
from swamp.report.mask_comparison import MaskByTraining, MaskOverlaps
from swamp.report.matplotlib_renderer import draw
from swamp.report.report_data import ReportData
from swamp.report.tables import comparison_csv, comparison_markdown, markdown
from swamp.runs.directory import write_json


def free_folder(folder: Path, made_by: Mapping[str, Any]) -> Path:
    """`folder`, or the first of folder-2, folder-3 ... that holds no comparison of other runs or options."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    names = (folder if number == 1 else named.with_name(f"{named.name}-{number}") for number in count(1))
    return next(name for name in names if _made_by(name) in (None, dict(made_by)))


def _made_by(folder: Path) -> Any:
    """The runs and options of the comparison in a folder; None if it holds none, False if they are not known."""
    try:
        return json.loads((folder / "compare.json").read_text()).get("made_by", False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError):
        return False


def write_comparison(
    comparison: Comparison, folder: Path | str, *, at: At = "sparsity", made_by: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write `compare.csv` (a line per run and cycle), `.json`, `.png`, `.svg` and `comparison.md`.

    Args:
        comparison: the comparison to write.
        folder: created if it does not exist.
        at: compare methods in the figure and in Markdown at equal sparsity, or also at equal cost.
        made_by: runs and options, see `free_folder`.

    Returns:
        The files.
    """
    folder = Path(folder)
    paths = [folder / f"compare.{suffix}" for suffix in ("csv", "json", "png", "svg")]
    paths.append(folder / "comparison.md")
    write_atomic(paths[0], comparison_csv(comparison).encode())
    write_json(paths[1], comparison.to_json() | ({} if made_by is None else {"made_by": dict(made_by)}))
    draw_comparison(comparison, paths[2:4], at=at)
    write_atomic(paths[4], comparison_markdown(comparison, at=at).encode())
    return paths


def draw_comparison(comparison: Comparison, files: Sequence[Path], *, at: At = "sparsity") -> None:
    """Draw the metric against sparsity, or against cost with a panel per sparsity, into each of the files."""
    figure = accuracy_figure(comparison, alone=True) if at == "sparsity" else equal_cost_figure(comparison)
    draw(figure, files, wide=True)


def write_finding(finding: MaskByTraining | MaskOverlaps, folder: Path, name: str, command: str) -> list[Path]:
    """Write `name`.json, .md, .png and .svg into `folder`; `command` is the command line that made the finding."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("json", "md", "png", "svg")]
    write_json(paths[0], finding.to_json())
    text = "\n".join(map(markdown, finding.tables()))
    write_atomic(paths[1], f"{text}\nMade by: `{command}`\n".encode())
    draw(finding.figure(), paths[2:])
    return paths


def draw_figure(paths: Sequence[Path], which: str, out: Path, suffix: str, *, metric: str = "") -> list[Path]:
    """Draw the figures of a section: the first into `out`, the others beside it as -2, -3 ...

    Args:
        paths: run directories.
        which: a name of `SECTIONS`.
        out: the file of the first figure.
        suffix: pdf, svg or png.
        metric: a metric that the runs measured; empty: accuracy, or else their first.

    Returns:
        The files.

    Raises:
        SwampError: the runs lack the data; the message has the command that makes it.
    """
    section = SECTIONS[which]
    figures = section.build(ReportData.read(paths, metric=metric))
    if not figures:
        why = f". Run first: {section.made_by(paths[0])}" if section.analysis else f": {section.needs}"
        raise SwampError(f"there is nothing to draw for {which}{why}")
    files = [out, *(out.with_name(f"{out.stem}-{n}{out.suffix}") for n in range(2, len(figures) + 1))]
    for figure, file in zip(figures, files, strict=True):
        draw(figure, [file], suffix)
    return files


def draw_run(run: Path, folder: Path) -> dict[str, Path]:
    """Draw all figures of one run that need no analysis as PNG files into `folder`; returns them by name."""
    data, drawn = ReportData.read([run]), dict[str, Path]()
    for name, section in SECTIONS.items():
        for number, figure in enumerate(section.build(data) if section.analysis is None else [], 1):
            numbered = name if number == 1 else f"{name}-{number}"
            drawn[numbered] = folder / f"{numbered}.png"
            draw(figure, [drawn[numbered]])
    return drawn
