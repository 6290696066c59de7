"""What runs were configured with and what they ran on, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from swamp.errors import SwampError
from swamp.report.evidence import Looked
from swamp.report.label import show
from swamp.report.picture import Table
from swamp.runs import flattened, read_sessions

_FACTS = ("time", "device", "processor", "cores", "threads", "platform", "python", "git")


def settings(looked: Sequence[Looked]) -> list[Table]:
    """The settings in which runs differ, a row a run; and those that are the same for all."""
    flats = [{key: show(value) for key, value in flattened(dict(each.run.config)).items()} for each in looked]
    keys = sorted({key for flat in flats for key in flat})
    differ = [key for key in keys if len({flat.get(key) for flat in flats}) > 1]
    same = tuple((key, flats[0][key]) for key in keys if key not in differ)
    tables = [Table("The same in all runs" if len(flats) > 1 else "Settings", ("setting", "value"), same)]
    if differ:
        rows = tuple(
            (each.name, *(flat.get(key, "–") for key in differ)) for each, flat in zip(looked, flats, strict=True)
        )
        tables.insert(0, Table("Where runs differ", ("run", *differ), rows))
    return tables


def environments(looked: Sequence[Looked]) -> list[Table]:
    """The last session of each run: machine, device and versions. Runs without environment.json have none."""
    rows: list[tuple[str, ...]] = []
    for each in looked:
        last = _last(each)
        if last:
            packages = cast("Mapping[str, Any]", last.get("packages") or {})
            versions = ", ".join(f"{name} {version}" for name, version in packages.items())
            rows.append((each.name, *(show(last.get(fact, "–")) for fact in _FACTS), versions))
    return [Table("Last session of each run", ("run", *_FACTS, "packages"), tuple(rows))] if rows else []


def _last(looked: Looked) -> Mapping[str, Any]:
    if not looked.run.directory.environment.exists():
        # A run copied without it is still a run.
        return {}
    try:
        sessions = read_sessions(looked.run.directory)
        return sessions[-1] if sessions else {}
    except SwampError as error:
        return {"time": str(error)}
