"""Masks of several runs beside each other: tables, and a picture."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.text import Text

from swamp.report.comparison import plain
from swamp.report.evidence import sparse, sparsity_axis
from swamp.report.picture import Axis, Bars, Curve, Number, Panel, Picture
from swamp.report.sheet import Column, Sheet

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Overlaps:
    """What `swamp.analysis.overlaps` found, and the densities of its rows."""

    records: tuple[Record, ...]
    densities: tuple[float, ...]

    @property
    def groups(self) -> dict[str, list[Record]]:
        """Pairs of runs that are alike: two methods with one seed, two seeds of one method, or both other."""
        found: dict[str, list[Record]] = {}
        for record in self.records:
            who = record["a"] if record["a"] == record["b"] else f"{record['a']} and {record['b']}"
            same = record["seeds"][0] == record["seeds"][1]
            found.setdefault(f"{who}, {'same seed' if same else 'other seeds'}", []).append(record)
        return found

    def sheets(self) -> list[Sheet]:
        """Whole masks at each sparsity, and the layers at the last one."""
        whole = tuple(
            Column(_broken(name), tuple(_text(self._at(found, row)) for row in range(len(self.densities))))
            for name, found in self.groups.items()
        )
        names, last = self._layers(), len(self.densities) - 1
        layers = tuple(
            Column(_broken(name), tuple(_text([r["layers"][layer] for r in self._at(found, last)]) for layer in names))
            for name, found in self.groups.items()
        )
        key = Column("sparse\n%", tuple(Text(f"{100 * (1 - density):.2f}") for density in self.densities))
        below = (
            "Weights that live in both masks, of those that live in either (Jaccard index, %); in brackets what masks "
            "with the same layer densities share by chance; s: those of both that have the same sign (%). Means over "
            "pairs of runs."
        )
        at = f"{100 * (1 - self.densities[-1]):.2f} % sparse"
        return [
            Sheet("What masks of two runs have in common", (key,), whole, below),
            Sheet(f"The same by layer, {at}", (Column("layer", tuple(map(Text, names))),), layers, below),
        ]

    def picture(self) -> Picture:
        """Overlap and its chance against sparsity, signs, and the layers at the last one."""
        axis, share = sparsity_axis(self.densities), Axis("in common (%)")
        curves = [*self._curves("jaccard", "line"), *self._curves("expected", "dotted")]
        panels = [Panel("Weights in both masks (dotted: chance)", axis, share, tuple(curves))]
        if signs := [*self._curves("signs", "line")]:
            panels.append(Panel("Of these, with the same sign", axis, Axis("same sign (%)"), tuple(signs)))
        names, last = self._layers(), len(self.densities) - 1
        bars = tuple(
            Bars(
                name,
                names,
                tuple(_mean([r["layers"][n] for r in self._at(found, last)], "above_chance") for n in names),
                i,
            )
            for i, (name, found) in enumerate(self.groups.items())
        )
        panels.append(Panel("Above chance by layer, last sparsity", Axis(""), Axis("of what is possible (%)"), bars))
        return Picture(
            "Do runs find the same masks?",
            "Masks of one ticket that share more than chance were largely there in it; where they share as much as two "
            "seeds of one method do, it is noise and not the method that makes them differ.",
            tuple(panels),
        )

    def _curves(self, what: str, style: Any) -> Iterator[Curve]:
        for colour, (name, found) in enumerate(self.groups.items()):
            y = tuple(_mean(self._at(found, row), what) for row in range(len(self.densities)))
            if any(value is not None for value in y):
                listed = style == "line"
                label, notes = (name if listed else f"{name}: chance"), tuple(map(sparse, self.densities))
                yield Curve(label, self.densities, y, colour, style, notes=notes, listed=listed)

    def _layers(self) -> tuple[str, ...]:
        return tuple(self.records[0]["layers"]) if self.records else ()

    def _at(self, found: Sequence[Record], row: int) -> list[Record]:
        return [record for record in found if record["row"] == row]

    def to_json(self) -> dict[str, Any]:
        """Plain values: a record for each pair of runs and sparsity."""
        return plain({"densities": list(self.densities), "pairs": [dict(record) for record in self.records]})


def _text(records: Sequence[Record]) -> Text:
    found, chance, signs = (_mean(records, what) for what in ("jaccard", "expected", "signs"))
    if found is None or chance is None:
        return Text("–")
    return Text(f"{found:.1f} ({chance:.1f}){'' if signs is None else f' s {signs:.1f}'}")


def _mean(records: Sequence[Record], what: str) -> Number:
    """In per cent, of the values that are numbers."""
    values: list[float] = [record[what] for record in records if math.isfinite(record[what])]
    return 100 * fmean(values) if values else None


def _broken(name: str) -> str:
    return name.replace(", ", ",\n").replace(" and ", "\nand ")
