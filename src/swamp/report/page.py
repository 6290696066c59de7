"""The report as one HTML page: it opens offline, asks nobody for anything, and is the same for the same runs."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from swamp.errors import SwampError
from swamp.files import write_atomic
from swamp.report.evidence import MOST_RUNS, Evidence, Looked
from swamp.report.headline import headline
from swamp.report.page_settings import environments, settings
from swamp.report.picture import Picture, tables_of
from swamp.report.pictures import CHAPTERS, Chapter
from swamp.report.traces import traces

_MOST_REASONS = 4


@dataclass(frozen=True)
class Section:
    """A chapter with its pictures, and what to say of runs that lack what it needs."""

    name: str
    title: str
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    """What makes what is missing."""


def write_report(paths: Sequence[Path], out: Path, *, metric: str = "") -> int:
    """Write the report on the runs in `paths` to `out`, whole or not at all; returns its bytes."""
    page = render(Evidence.read(paths, metric=metric)).encode()
    write_atomic(out, page)
    return len(page)


def render(evidence: Evidence, *, live: bool = False) -> str:
    """The page. live: it looks for a newer one of itself every few seconds, where it was served from."""
    sections = [_section(evidence, name, chapter) for name, chapter in CHAPTERS.items()]
    comparison = evidence.comparison
    return _page(
        live,
        title=f"{comparison.task}, {comparison.model}: {', '.join(comparison.labels)}",
        headline=headline(comparison),
        notes=comparison.notes,
        runs=[str(looked.run.path) for looked in evidence.looked],
        sections=sections,
        settings=settings(evidence.looked),
        environments=environments(evidence.looked),
        panels=[traces(panel) for section in sections for picture in section.pictures for panel in picture.panels],
    )


def waiting(path: Path, why: str) -> str:
    """The live page of a run that has nothing to show yet."""
    none: tuple[Any, ...] = ()
    return _page(
        True,
        title=str(path),
        headline=[why],
        notes=none,
        runs=[str(path)],
        sections=none,
        settings=none,
        environments=none,
        panels=[],
    )


def _page(live: bool, *, panels: Sequence[Mapping[str, Any]], **values: Any) -> str:
    scripts = [_asset("plotly-cartesian.min.js"), _asset("page.js")]
    environment = Environment(
        loader=PackageLoader("swamp.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        **values,
        live=live,
        policy=_policy(scripts, live),
        plotly=scripts[0],
        script=scripts[1],
        style=_asset("page.css"),
        # In a script element no character reference is read: what could end it is spelled as JSON's own.
        panels=json.dumps(panels, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        tables_of=tables_of,
    )


def _policy(scripts: Sequence[str], live: bool) -> str:
    """Only the page's own scripts run, and nothing is fetched from anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    # plotly styles its elements in place; its camera button saves through blob: and data:.
    fetched = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {fetched}; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return files("swamp.report").joinpath("assets", name).read_text(encoding="utf-8")


def _section(evidence: Evidence, name: str, chapter: Chapter) -> Section:
    notes: list[str] = []
    pictures = tuple(drawn(evidence, name, chapter, notes))
    lacking: list[Looked] = []
    if chapter.analysis:
        there = evidence.with_(chapter.analysis)
        lacking = [looked for looked in evidence.looked if looked not in there]
        if lacking and there:
            notes.append(f"Not analysed: {', '.join(looked.name for looked in lacking)}.")
        elif lacking:
            notes.append("Not analysed yet. This makes it:")
        reasons = [f"{looked.name}: {reason}" for looked in there for reason in looked.left_out(chapter.analysis)]
        # Cycles that lack the same say the same.
        reasons = list(dict.fromkeys(reasons))
        if not (pictures or notes or reasons):
            notes.append("No cycle of these runs has what this needs: two particles or more that were kept.")
        notes += reasons[:_MOST_REASONS]
        if len(there) > MOST_RUNS:
            notes.append(f"Pictures of single runs show {MOST_RUNS} at most, the first seed of each method.")
    elif not pictures and not notes:
        notes.append("No cycle of these runs had several particles.")
    commands = [chapter.made_by(run.run.path) for run in lacking]
    return Section(name, chapter.title, pictures, tuple(notes), tuple(commands))


def drawn(evidence: Evidence, name: str, chapter: Chapter, notes: list[str]) -> list[Picture]:
    """The chapter's pictures; where a record has not the values it should have, a note in their place."""
    try:
        return chapter.draw(evidence)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, SwampError) as error:
        # The file may be of another version, or damaged: the rest of the page is still true.
        notes.append(f"The records of {name} could not be read ({type(error).__name__}: {error}). Analyse anew.")
        return []
