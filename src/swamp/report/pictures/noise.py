"""Sources of noise: how far particles are driven apart by one thing at a time, and what averaging makes of it."""

from collections.abc import Callable, Mapping
from typing import Any

from swamp.report.evidence import Evidence, Looked, sparse
from swamp.report.picture import Axis, Bars, Number, Panel, Picture, Table, shown

_NAMES = {
    "none": "nothing",
    "order": "batch order",
    "augmentation": "augmentation",
    "dropout": "dropout",
    "rate": "learning rate",
    "head": "new head",
    "all": "all, as in a run",
}
Value = Callable[[Mapping[str, Any]], object]
_VALUES: dict[str, tuple[str, Value]] = {
    "How far particles are apart": ("distance", lambda record: record["mean_distance"]),
    "In how many directions": ("effective dimension", lambda record: record["dimension"]),
    "Barrier between two": ("points", lambda record: _points(record["barrier"]["error"])),
    "What averaging gains": ("points", lambda record: _points(record["gain"])),
}


def noise(evidence: Evidence) -> list[Picture]:
    """Distance, dimension, barrier and gain of each source, at the last cycle that was looked into."""
    found = [(looked, records) for looked in evidence.firsts("noise") if (records := _last(looked))]
    if not found:
        return []
    panels = [
        Panel(title, Axis(""), Axis(unit), tuple(_bars(evidence, looked, records, value) for looked, records in found))
        for title, (unit, value) in _VALUES.items()
    ]
    return [
        Picture(
            "What drives particles apart, and which of it pays",
            "Particles of one ticket and mask differ in one thing at a time: a source that gives distance without a "
            "barrier is one that averaging can gain from, and nothing at all must give a distance of 0.",
            tuple(panels),
            tuple(_table(looked, records) for looked, records in found),
        )
    ]


def _last(looked: Looked) -> dict[str, Mapping[str, Any]]:
    """Source -> its record, of the last cycle that has one."""
    each = {name: found for name in _NAMES if (found := looked.of("noise", name))}
    last = max((found[-1]["cycle"] for found in each.values()), default=None)
    return {name: found[-1] for name, found in each.items() if found[-1]["cycle"] == last}


def _bars(evidence: Evidence, looked: Looked, records: Mapping[str, Mapping[str, Any]], value: Value) -> Bars:
    values = tuple(_number(value(record)) for record in records.values())
    return Bars(_title(looked, records), tuple(_NAMES[name] for name in records), values, evidence.colour(looked.label))


def _title(looked: Looked, records: Mapping[str, Mapping[str, Any]]) -> str:
    return f"{looked.name}, {sparse(1 - next(iter(records.values()))['sparsity'])}"


def _table(looked: Looked, records: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            _NAMES[name],
            *(shown(_number(value(record))) for _, value in _VALUES.values()),
            shown(_number(record["radius"])),
            shown(_points(record["mean"]["error"])),
        )
        for name, record in records.items()
    )
    columns = ("differ in", "distance", "dimension", "barrier (points)", "gain (points)", "radius", "mean's error (%)")
    return Table(_title(looked, records), columns, rows)


def _points(value: object) -> Number:
    return None if (found := _number(value)) is None else 100 * found


def _number(value: object) -> Number:
    return float(value) if isinstance(value, int | float) else None
