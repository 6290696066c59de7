"""What was found in runs as files: a comparison with its long-format CSV, other looks, their tables and pictures."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from swamp.files import write_atomic
from swamp.report.comparison import At, Comparison, Point
from swamp.report.markdown import markdown, sheet_of
from swamp.report.paper import draw
from swamp.report.picture import Picture
from swamp.report.plot import plot
from swamp.report.sheet import Sheet


def write_comparison(comparison: Comparison, folder: Path | str, *, at: At = "sparsity") -> list[Path]:
    """Write `compare.csv` (a line per run and cycle), `.json`, `.png`, `.svg` and `comparison.md` into `folder`.

    `at` is what the pictures and the Markdown line methods up by. Each file is whole or not there.
    """
    folder = Path(folder)
    paths = [folder / f"compare.{suffix}" for suffix in ("csv", "json", "png", "svg")]
    paths.append(folder / "comparison.md")
    write_atomic(paths[0], _csv(comparison).encode())
    write_atomic(paths[1], (json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n").encode())
    for path in paths[2:4]:
        plot(comparison, path, at=at)
    write_atomic(paths[4], markdown(comparison, at=at).encode())
    return paths


class Found(Protocol):
    """What a look at several runs found."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ...

    def sheets(self) -> Sequence[Sheet]:
        """Its tables."""
        ...

    def picture(self) -> Picture:
        """Its picture."""
        ...


def write_found(found: Found, folder: Path, name: str, command: str) -> list[Path]:
    """Write `name`.json, .md, .png and .svg into `folder`, each whole or not at all. command: what made them."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("json", "md", "png", "svg")]
    write_atomic(paths[0], (json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n").encode())
    text = "\n".join(map(sheet_of, found.sheets()))
    write_atomic(paths[1], f"{text}\nMade by: `{command}`\n".encode())
    for path in paths[2:]:
        draw(found.picture(), path, path.suffix[1:])
    return paths


def _csv(comparison: Comparison) -> str:
    metrics = list(dict.fromkeys(name for point in comparison.points for name in point.metrics))
    text = io.StringIO()
    rows = [_line(point, metrics) for point in comparison.points]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _line(point: Point, metrics: Sequence[str]) -> dict[str, object]:
    return {
        "label": point.label,
        "seed": point.seed,
        "cycle": point.cycle,
        "sparsity": 1 - point.density,
        "density": point.density,
        "density_all": point.density_all,
        **{name: point.metrics.get(name) for name in metrics},
        "particles": point.n,
        "barrier": point.barrier,
        "steps": point.steps,
        "samples": point.samples,
        "operations": point.operations,
        "seconds": point.seconds,
        **{f"total_{name}": value for name, value in asdict(point.total).items()},
    }
