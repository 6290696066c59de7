"""A picture of the report as files for a paper."""

from collections.abc import Sequence
from pathlib import Path

from swamp.errors import SwampError
from swamp.report.evidence import Evidence
from swamp.report.paper import draw
from swamp.report.pictures import CHAPTERS, Chapter


def draw_figure(paths: Sequence[Path], which: str, out: Path, suffix: str, *, metric: str = "") -> list[Path]:
    """Draw the pictures of the chapter `which`: the first into `out`, the others beside it as -2, -3 ...

    Raises SwampError where the runs have not what it takes, with the command that makes it.
    """
    chapter = CHAPTERS[which]
    pictures = chapter.draw(Evidence.read(paths, metric=metric))
    if not pictures:
        raise SwampError(f"there is nothing to draw for {which}: {_missing(chapter, paths)}")
    files = [out, *(out.with_name(f"{out.stem}-{n}{out.suffix}") for n in range(2, len(pictures) + 1))]
    for picture, file in zip(pictures, files, strict=True):
        draw(picture, file, suffix)
    return files


def _missing(chapter: Chapter, paths: Sequence[Path]) -> str:
    if chapter.analysis is None:
        return "no cycle of these runs had several particles."
    return f"make it with: {chapter.made_by(paths[0])}"
