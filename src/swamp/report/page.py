"""The report as one HTML page: it works offline, requests nothing, and is identical for identical runs."""

import base64
import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined

from swamp.errors import SwampError, plural
from swamp.files import write_atomic
from swamp.report.comparison import Comparison, SparsityRow
from swamp.report.figure_description import Figure, tables_of
from swamp.report.figures import SECTIONS, Section
from swamp.report.plotly_renderer import plotly_json
from swamp.report.report_data import MOST_RUNS, ReportData, RunAnalyses
from swamp.report.run_records import show
from swamp.report.statistics import Paired, ReportMetric, paired
from swamp.report.tables import Table
from swamp.runs.config import flattened
from swamp.runs.read import read_sessions

_MOST_REASONS = 4
_NOTHING: dict[str, Any] = dict.fromkeys(
    ("notes", "sections", "missing", "missing_commands", "settings", "environments"), ()
)
"""The parts of a page that need a finished cycle."""
_FACTS = ("time", "device", "processor", "cores", "threads", "platform", "python", "git")


@dataclass(frozen=True)
class _Content:
    """A section with its figures, and notes on runs that lack the analysis."""

    name: str
    title: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    """The command lines that make the missing analyses."""


def write_report(paths: Sequence[Path], out: Path, *, metric: str = "") -> int:
    """Write the report on runs of one task and model to a file, which is complete or not written at all.

    Args:
        paths: run directories.
        out: the HTML file.
        metric: a metric that the runs measured; empty: accuracy, or else their first.

    Returns:
        The size of the file in bytes.

    Raises:
        SwampError: see `ReportData.read`.
    """
    page = render(ReportData.read(paths, metric=metric)).encode()
    write_atomic(out, page)
    return len(page)


def render(data: ReportData, *, live: bool = False) -> str:
    """Return the page as HTML. live: it reloads when the server that it came from has a newer one."""
    contents = {name: _content(data, name, section) for name, section in SECTIONS.items()}
    sections = [content for content in contents.values() if content is not None]
    missing = [SECTIONS[name] for name, content in contents.items() if content is None and SECTIONS[name].analysis]
    comparison = data.comparison
    return _page(
        live,
        title=f"{comparison.task}, {comparison.model}: {', '.join(comparison.labels)}",
        summary=summary_sentences(comparison),
        notes=comparison.notes,
        runs=[str(run.run.path) for run in data.runs],
        sections=sections,
        missing=[section.title for section in missing],
        missing_commands=_commands(missing, data.runs),
        settings=_settings(data.runs),
        environments=_environments(data.runs),
        panels=[plotly_json(panel) for section in sections for figure in section.figures for panel in figure.panels],
    )


def render_waiting(path: Path, why: str) -> str:
    """Return the live page of a run that has nothing to show yet."""
    return _page(True, **_NOTHING, title=str(path), summary=[why], runs=[str(path)], panels=[])


def summary_sentences(comparison: Comparison) -> list[str]:
    """Sentences on one method: its sparsest result, and the differences to dense, to the baseline, to its particles."""
    label = _summarised(comparison)
    row = _summarised_row(comparison, label)
    if row is None:
        return [f"No run measured {comparison.metric} on the {comparison.split} split at any sparsity."]
    metric, cell = comparison.report_metric, row.cells[label]
    unit = " %" if metric.percent else ""
    seeds = f" (mean ± 95 % interval, {cell.n} seeds)" if math.isfinite(cell.half) else " (one seed)"
    sentences = [
        f"{label} reaches {metric.show_interval(cell.mean, cell.half)}{unit} {comparison.split} {metric.name} "
        f"at {100 * row.sparsity:.2f} % sparsity{seeds}."
    ]
    if row.density < 1:
        sentences += _against_dense(comparison, row, label)
    if label != comparison.baseline and comparison.baseline in row.cells:
        sentences.append(_against(metric, row.differences.get(label), comparison.baseline))
    if cell.particles is not None and cell.particles != cell.mean:
        relation = _relation(metric, cell.mean - cell.particles)
        sentences.append(f"The average is {relation} its own particles' mean ({metric.show(cell.particles)}).")
    return sentences


def _against_dense(comparison: Comparison, row: SparsityRow, label: str) -> list[str]:
    """The difference to the dense network, over the seeds that both have; nothing without such a seed."""
    metric, number = comparison.report_metric, comparison.rows.index(row)
    here = [point for point in comparison.points if (point.label, point.row) == (label, number)]
    values = {point.seed: point.value for point in here if point.value is not None}
    difference = paired(values, comparison.dense_by_seed)
    if comparison.dense is None or not difference.n:
        return []
    dense = f"{metric.show(comparison.dense)}{' %' if metric.percent else ''}"
    same = values.keys() == comparison.dense_by_seed.keys()
    shared = "" if same else f", over {plural(difference.n, 'common seed')}"
    relation = _relation(metric, difference.mean)
    return [f"That is {relation} the dense network ({comparison.dense_label}, {dense}){shared}."]


def _summarised(comparison: Comparison) -> str:
    """SWAMP if present, else the best of the sparsest row, else a method that is not the baseline."""
    swamp = [label for label in comparison.labels if label.lower().startswith("swamp")]
    best = [label for row in reversed(comparison.rows) for label in row.best]
    others = [label for label in comparison.labels if label != comparison.baseline]
    return (swamp or best or others or list(comparison.labels))[0]


def _summarised_row(comparison: Comparison, label: str) -> SparsityRow | None:
    """The sparsest row of the label, among those that include the baseline if there are any."""
    own = [row for row in comparison.rows if label in row.cells]
    shared = [row for row in own if comparison.baseline in row.cells]
    return min(shared or own, key=lambda row: row.density, default=None)


def _relation(metric: ReportMetric, difference: float) -> str:
    unit = " points" if metric.percent else ""
    if metric.show(abs(difference)) == metric.show(0.0):
        return "level with"
    return f"{metric.show(abs(difference))}{unit} {'above' if difference > 0 else 'below'}"


def _against(metric: ReportMetric, difference: Paired | None, baseline: str) -> str:
    if difference is None:
        return f"It has no common seed with {baseline}, so that the two are not compared."
    if difference.n < 2:
        return f"It is {_relation(metric, difference.mean)} {baseline}; one common seed cannot exclude chance."
    unit = " points" if metric.percent else ""
    chance = "" if difference.excludes_zero else ", which may be chance"
    mean = metric.show(difference.mean, sign=True)
    return (
        f"Against {baseline} at the same sparsity the difference is {mean} ±{metric.show(difference.half)}{unit} "
        f"(paired over {difference.n} seeds{chance})."
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
        # HTML escapes have no effect inside a script element: < is written as a JSON escape, so that it cannot end it.
        panels=json.dumps(panels, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        tables_of=tables_of,
    )


def _policy(scripts: Sequence[str], live: bool) -> str:
    """A content security policy: only the page's own scripts run, and nothing is requested from other hosts."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    requests = "'self'" if live else "'none'"
    # plotly styles its elements in place; its button for saving a picture uses blob: and data:.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {requests}; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return files("swamp.report").joinpath("assets", name).read_text(encoding="utf-8")


def _content(data: ReportData, name: str, section: Section) -> _Content | None:
    """The section; None if no run has its analysis, or what it shows: several particles, say."""
    notes: list[str] = []
    figures = tuple(_built(data, name, section, notes))
    lacking: list[RunAnalyses] = []
    if section.analysis:
        there = data.analysed(section.analysis)
        lacking = [run for run in data.runs if run not in there]
        if lacking and there:
            notes.append(f"Not analysed: {', '.join(run.name for run in lacking)}.")
        elif lacking:
            return None
        # Several cycles may have the same reason.
        reasons = [f"{run.name}: {reason}" for run in there for reason in run.missing_reasons(section.analysis)]
        reasons = list(dict.fromkeys(reasons))
        if not (figures or notes or reasons):
            notes.append("No cycle of these runs has the data: at least two particles that were kept.")
        notes += reasons[:_MOST_REASONS]
        if len(there) > MOST_RUNS:
            notes.append(f"Figures of single runs show at most {MOST_RUNS}, the first seed of each method.")
    elif not figures and not notes:
        return None
    commands = [section.made_by(run.run.path) for run in lacking]
    return _Content(name, section.title, figures, tuple(notes), tuple(commands))


def _commands(sections: Sequence[Section], runs: Sequence[RunAnalyses]) -> list[str]:
    """The command lines that make the analyses of these sections, one for each run and command."""
    found: list[str] = []
    for run in runs:
        name = shlex.quote(str(run.run.path))
        analyses = [*dict.fromkeys(one.analysis for one in sections if one.analysis and not one.command)]
        found += [f"swamp analyze {name} --only {' '.join(map(str, analyses))}"] if analyses else []
        found += [section.made_by(run.run.path) for section in sections if section.command]
    return found


def _built(data: ReportData, name: str, section: Section, notes: list[str]) -> list[Figure]:
    """The section's figures; if a record lacks values, a note instead."""
    try:
        return section.build(data)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, SwampError) as error:
        # The file is of another version or damaged; the other sections are not affected.
        notes.append(
            f"The records of {name} could not be read ({type(error).__name__}: {error}). Run the analysis again."
        )
        return []


def _settings(runs: Sequence[RunAnalyses]) -> list[Table]:
    """The settings in which runs differ, a row per run; and those that are the same in all."""
    flats = [{key: show(value) for key, value in flattened(dict(run.run.config)).items()} for run in runs]
    keys = sorted({key for flat in flats for key in flat})
    differ = [key for key in keys if len({flat.get(key) for flat in flats}) > 1]
    same = tuple((key, flats[0][key]) for key in keys if key not in differ)
    tables = [Table("The same in all runs" if len(flats) > 1 else "Settings", ("setting", "value"), same)]
    if differ:
        rows = tuple((run.name, *(flat.get(key, "–") for key in differ)) for run, flat in zip(runs, flats, strict=True))
        tables.insert(0, Table("Settings that differ between runs", ("run", *differ), rows))
    return tables


def _environments(runs: Sequence[RunAnalyses]) -> list[Table]:
    """The last session of each run: machine, device and versions; empty without environment.json."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        if last := _last_session(run):
            packages = cast("Mapping[str, Any]", last.get("packages") or {})
            versions = ", ".join(f"{name} {version}" for name, version in packages.items())
            rows.append((run.name, *(show(last.get(fact, "–")) for fact in _FACTS), versions))
    return [Table("Last session of each run", ("run", *_FACTS, "packages"), tuple(rows))] if rows else []


def _last_session(run: RunAnalyses) -> Mapping[str, Any]:
    # A run may have been copied without this file.
    if not run.run.directory.environment.exists():
        return {}
    try:
        sessions = read_sessions(run.run.directory)
        return sessions[-1] if sessions else {}
    except SwampError as error:
        return {"time": str(error)}
