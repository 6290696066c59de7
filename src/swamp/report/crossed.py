"""Masks by training: what every run's masks are worth under every run's training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.text import Text

from swamp.report.comparison import plain
from swamp.report.evidence import sparse, sparsity_axis
from swamp.report.metric import Metric
from swamp.report.picture import Axis, Curve, Number, Panel, Picture
from swamp.report.read import measured
from swamp.report.sheet import Column, Sheet, counted
from swamp.report.statistics import Paired, interval, paired

SPLITS = ("test", "validation")


@dataclass(frozen=True)
class Effect:
    """What changes where one thing is exchanged and the other stays, paired by seed."""

    what: Literal["mask", "training"]
    """What is exchanged."""
    of: str
    """The label it is taken from."""
    against: str
    """The label it is compared with."""
    given: str
    """Whose training (of a mask), or whose masks (of a training), stay."""
    split: str
    row: int
    difference: Paired

    @property
    def name(self) -> str:
        """As headings say it."""
        if self.what == "mask":
            return f"masks of {self.of} - of {self.against}\ntrained by {self.given}"
        return f"trained by {self.of} - by {self.against}\nmasks of {self.given}"


@dataclass(frozen=True)
class Crossed:
    """Cells by label of the mask and of the training, at each density. Metrics are as recorded."""

    labels: tuple[str, ...]
    """The first is what the others are compared with."""
    densities: tuple[float, ...]
    metric: str
    values: Mapping[tuple[str, int, str, str], Mapping[int, float]]
    """(split, row, masks, training) -> seed -> value."""
    cost: Mapping[tuple[str, str], tuple[int, float]]
    """(masks, training) -> steps and seconds of all its cells; those of runs are their cycles' own."""

    @classmethod
    def of(
        cls, cells: Sequence[Mapping[str, Any]], labels: Sequence[str], rows: Sequence[float], metric: str
    ) -> "Crossed":
        """Collect the cells that `swamp.analysis.cross` gives."""
        values: dict[tuple[str, int, str, str], dict[int, float]] = {}
        cost: dict[tuple[str, str], tuple[int, float]] = {}
        for cell in cells:
            pair, record = (cell["masks"], cell["training"]), cell["record"]
            steps, seconds = cost.get(pair, (0, 0.0))
            cost[pair] = steps + record["steps"], seconds + record["seconds"]
            for split in SPLITS:
                if (value := measured(record[split] or {}, metric)) is not None:
                    values.setdefault((split, cell["row"], *pair), {})[cell["seed"]] = value
        return cls(tuple(labels), tuple(rows), metric, values, cost)

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that were measured."""
        return tuple(split for split in SPLITS if any(key[0] == split for key in self.values))

    def effects(self) -> Iterator[Effect]:
        """All of them: other masks under each training, then other trainings of each mask."""
        base, *others = self.labels
        for split in self.splits:
            for row in range(len(self.densities)):
                for given in self.labels:
                    for of in others:
                        mask = (split, row, of, given), (split, row, base, given)
                        training = (split, row, given, of), (split, row, given, base)
                        if found := self._paired(*mask):
                            yield Effect("mask", of, base, given, split, row, found)
                        if found := self._paired(*training):
                            yield Effect("training", of, base, given, split, row, found)

    def _paired(self, one: tuple[str, int, str, str], other: tuple[str, int, str, str]) -> Paired | None:
        found = paired(self.values.get(one, {}), self.values.get(other, {}))
        return found if found.n else None

    def sheets(self) -> list[Sheet]:
        """For each split the cells, and the effects."""
        return [sheet for split in self.splits for sheet in (self._cells(split), self._effects(split))]

    def _cells(self, split: str) -> Sheet:
        metric = Metric(self.metric)
        title = f"Masks by training: {split} {metric.heading}, mean ± 95 % t-interval over seeds (seeds)"
        columns = tuple(
            Column(
                f"masks of {masks}\ntrained by {training}",
                tuple(self._cell(metric, split, row, masks, training) for row in range(len(self.densities))),
            )
            for training in self.labels
            for masks in self.labels
        )
        below = "Masks and training of one run: that run's own cycles. The others are trained from the same ticket."
        return Sheet(title, (self._key(),), columns, below)

    def _cell(self, metric: Metric, split: str, row: int, masks: str, training: str) -> Text:
        found = [*self.values.get((split, row, masks, training), {}).values()]
        mean, half = interval(found)
        return Text(f"{metric.show_interval(mean, half)} ({len(found)})" if found else "–")

    def _effects(self, split: str) -> Sheet:
        metric = Metric(self.metric)
        effects = [effect for effect in self.effects() if effect.split == split]
        names = sorted({effect.name: effect.what for effect in effects}.items(), key=lambda item: item[1])
        columns = tuple(
            Column(name, tuple(_difference(metric, effects, name, row) for row in range(len(self.densities))))
            for name, _ in names
        )
        unit = f"{split} {metric.name}" + (", in points" if metric.percent else "")
        title = f"What another mask, and what another training does: {unit}, paired by seed (seeds)"
        return Sheet(title, (self._key(),), columns, counted(len(effects), metric))

    def _key(self) -> Column:
        return Column("sparse\n%", tuple(Text(f"{100 * (1 - density):.2f}") for density in self.densities))

    def picture(self, split: str = "test") -> Picture:
        """A panel for each training with a curve for each run's masks, and one with what other masks change."""
        metric = Metric(self.metric)
        axis = sparsity_axis(self.densities)
        panels = [
            Panel(f"trained by {training}", axis, Axis(f"{split} {metric.heading}"), tuple(curves))
            for training in self.labels
            if (curves := [*self._curves(metric, split, training)])
        ]
        if changes := [*self._changes(metric, split)]:
            zero = Curve("0", (max(self.densities), min(self.densities)), (0.0, 0.0), None, "dotted", listed=False)
            unit = "points" if metric.percent else metric.heading
            panels.append(Panel(f"masks, against {self.labels[0]}'s", axis, Axis(unit), (zero, *changes)))
        return Picture(
            "Is it the mask, or how it was trained?",
            "In each panel one training is given every run's masks: curves that part say that masks differ in worth, "
            "and where they coincide all of a method's gain comes from how it trains.",
            tuple(panels),
        )

    def _curves(self, metric: Metric, split: str, training: str) -> Iterator[Curve]:
        for colour, masks in enumerate(self.labels):
            rows = [row for row in range(len(self.densities)) if (split, row, masks, training) in self.values]
            each = [interval([*self.values[split, row, masks, training].values()]) for row in rows]
            if rows:
                yield self._curve(metric, f"masks of {masks}", rows, each, colour)

    def _changes(self, metric: Metric, split: str) -> Iterator[Curve]:
        effects = [effect for effect in self.effects() if (effect.split, effect.what) == (split, "mask")]
        for of, given in dict.fromkeys((effect.of, effect.given) for effect in effects):
            these = [effect for effect in effects if (effect.of, effect.given) == (of, given)]
            each = [(effect.difference.mean, effect.difference.half) for effect in these]
            name = f"{of}, trained by {given}"
            yield self._curve(metric, name, [effect.row for effect in these], each, self.labels.index(given))

    def _curve(
        self, metric: Metric, name: str, rows: Sequence[int], each: Sequence[tuple[float, float]], colour: int
    ) -> Curve:
        x = tuple(self.densities[row] for row in rows)
        banded = all(half == half for _, half in each)
        low: tuple[Number, ...] = tuple(metric.factor * (mean - half) for mean, half in each) if banded else ()
        high: tuple[Number, ...] = tuple(metric.factor * (mean + half) for mean, half in each) if banded else ()
        notes = tuple(map(sparse, x))
        return Curve(name, x, tuple(metric.factor * mean for mean, _ in each), colour, low=low, high=high, notes=notes)

    def to_json(self) -> dict[str, Any]:
        """Plain values: each cell with its value by seed, each effect, and the cost of each pair."""
        cells = [
            {
                "split": split,
                "density": self.densities[row],
                "sparsity": 1 - self.densities[row],
                "masks": masks,
                "training": training,
                "seeds": dict(values),
                "mean": interval([*values.values()])[0],
                "half": interval([*values.values()])[1],
            }
            for (split, row, masks, training), values in sorted(self.values.items())
        ]
        effects = [
            {**effect.__dict__, "difference": effect.difference.__dict__, "density": self.densities[effect.row]}
            for effect in self.effects()
        ]
        cost = [
            {"masks": masks, "training": training, "steps": steps, "seconds": seconds}
            for (masks, training), (steps, seconds) in self.cost.items()
        ]
        whole = {"metric": self.metric, "labels": list(self.labels), "densities": list(self.densities)}
        return plain({**whole, "cells": cells, "effects": effects, "cost": cost})


def _difference(metric: Metric, effects: Sequence[Effect], name: str, row: int) -> Text:
    found = [effect.difference for effect in effects if (effect.name, effect.row) == (name, row)]
    if not found:
        return Text("–")
    (difference,) = found
    style = ("green" if (difference.mean < 0) == metric.lower else "red") if difference.excludes_zero else ""
    return Text(f"{metric.show_interval(difference.mean, difference.half, sign=True)} ({difference.n})", style=style)
