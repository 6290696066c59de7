"""Masks of several runs: their overlap, and their accuracy when another run's method trains them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any, Literal

from swamp.report.figure_description import (
    Axis,
    BarChart,
    Curve,
    Figure,
    Number,
    Panel,
    Style,
    interval_curve,
    level_line,
    panels_of,
    percent_sparse,
    sparsity_axis,
)
from swamp.report.run_records import measured
from swamp.report.statistics import Paired, ReportMetric, interval, paired
from swamp.report.tables import Column, Table, comparisons_note, difference_cell, sparsity_column
from swamp.runs.directory import replace_nonfinite

_SPLITS = ("test", "validation")
_Record = Mapping[str, Any]
_What = Literal["mask", "training"]


@dataclass(frozen=True)
class Effect:
    """The difference that another mask, or another training, makes while the other of the two stays the same."""

    what: _What
    """What differs."""
    of: str
    """The label of the run it is taken from."""
    against: str
    """The label of the run it is compared with."""
    given: str
    """The label of the run whose training (for masks) or masks (for trainings) stay the same."""
    split: str
    row: int
    difference: Paired

    @property
    def name(self) -> str:
        """The effect as a heading."""
        if self.what == "mask":
            return f"masks of {self.of} - of {self.against}\ntrained by {self.given}"
        return f"trained by {self.of} - by {self.against}\nmasks of {self.given}"


@dataclass(frozen=True)
class MaskByTraining:
    """A metric for each pair of a run's masks and a run's training, at each density. Metrics are as recorded."""

    labels: tuple[str, ...]
    """The others are compared with the first one."""
    densities: tuple[float, ...]
    metric: str
    values: Mapping[tuple[str, int, str, str], Mapping[int, float]]
    """(split, row, masks, training) -> seed -> value."""
    cost: Mapping[tuple[str, str], tuple[int, float]]
    """(masks, training) -> steps and seconds of all its cells."""
    lower_is_better: bool | None = None
    """Of the metric (None: judged by its name)."""

    @classmethod
    def of(
        cls,
        cells: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
        rows: Sequence[float],
        metric: str,
        lower_is_better: bool | None = None,
    ) -> "MaskByTraining":
        """Collect the cells that `cross_train` returns.

        Args:
            cells: records with masks, training, row, seed and record.
            labels: the labels of the runs.
            rows: the density of each row.
            metric: the metric to collect.
            lower_is_better: of the metric (None: judged by its name).
        """
        values: dict[tuple[str, int, str, str], dict[int, float]] = {}
        cost: dict[tuple[str, str], tuple[int, float]] = {}
        for cell in cells:
            pair, record = (cell["masks"], cell["training"]), cell["record"]
            steps, seconds = cost.get(pair, (0, 0.0))
            cost[pair] = steps + record["steps"], seconds + record["seconds"]
            for split in _SPLITS:
                if (value := measured(record[split] or {}, metric)) is not None:
                    values.setdefault((split, cell["row"], *pair), {})[cell["seed"]] = value
        return cls(tuple(labels), tuple(rows), metric, values, cost, lower_is_better)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that were measured."""
        return tuple(split for split in _SPLITS if any(key[0] == split for key in self.values))

    def effects(self) -> Iterator[Effect]:
        """The effect of other masks under each training, and of other trainings of each mask."""
        base, *others = self.labels
        for split, row, given, of in product(self.splits, range(len(self.densities)), self.labels, others):
            pairs: tuple[tuple[_What, tuple[str, str], tuple[str, str]], ...] = (
                ("mask", (of, given), (base, given)),
                ("training", (given, of), (given, base)),
            )
            for what, one, other in pairs:
                found = paired(self.values.get((split, row, *one), {}), self.values.get((split, row, *other), {}))
                if found.n:
                    yield Effect(what, of, base, given, split, row, found)

    def tables(self) -> list[Table]:
        """For each split the cells, and the effects."""
        return [table for split in self.splits for table in (self._cells_table(split), self._effects_table(split))]

    def figure(self) -> Figure:
        """A panel per training with a curve for each run's masks, and one with the effects of other masks."""
        metric, axis = ReportMetric(self.metric, self.lower_is_better), sparsity_axis(self.densities)
        zero = level_line("0", 0.0, self.densities, in_legend=False)
        unit = Axis("points" if metric.percent else metric.heading)
        changes = [*self._effect_curves(metric)]
        panels: list[Panel] = []
        for training in self.labels:
            curves = self._curves(metric, training)
            panels += panels_of(f"trained by {training}", axis, Axis(f"test {metric.heading}"), curves)
        if changes:
            panels += panels_of(f"difference to the masks of {self.labels[0]}", axis, unit, (zero, *changes))
        return Figure(
            "Effect of the mask, and of its training",
            "Each panel has one training and the masks of all runs. Where curves differ, one mask is better than "
            "another; where they coincide, the whole gain of a method comes from its training.",
            tuple(panels),
        )

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
        return replace_nonfinite({**whole, "cells": cells, "effects": effects, "cost": cost})

    def _cells_table(self, split: str) -> Table:
        metric = ReportMetric(self.metric, self.lower_is_better)
        columns: list[Column] = [
            (
                f"masks of {masks}\ntrained by {training}",
                [self._cell(metric, split, row, masks, training) for row in range(len(self.densities))],
            )
            for training in self.labels
            for masks in self.labels
        ]
        return Table.of_columns(
            f"Masks by training: {split} {metric.heading}, mean ± 95 % t-interval over seeds (seeds)",
            [sparsity_column(self.densities), *columns],
            "Masks and training of the same run: the cycles of that run. The others are trained from the same ticket.",
        )

    def _cell(self, metric: ReportMetric, split: str, row: int, masks: str, training: str) -> str:
        found = [*self.values.get((split, row, masks, training), {}).values()]
        return f"{metric.show_interval(*interval(found))} ({len(found)})" if found else "–"

    def _effects_table(self, split: str) -> Table:
        metric = ReportMetric(self.metric, self.lower_is_better)
        effects = [effect for effect in self.effects() if effect.split == split]
        found = {(effect.name, effect.row): effect.difference for effect in effects}
        names = sorted({effect.name: effect.what for effect in effects}.items(), key=lambda item: item[1])
        columns: list[Column] = [
            (name, [difference_cell(metric, found.get((name, row))) for row in range(len(self.densities))])
            for name, _ in names
        ]
        unit = f"{split} {metric.name}" + (", in points" if metric.percent else "")
        return Table.of_columns(
            f"Effect of another mask, and of another training: {unit}, paired by seed (seeds)",
            [sparsity_column(self.densities), *columns],
            comparisons_note([effect.difference for effect in effects], metric),
        )

    def _curves(self, metric: ReportMetric, training: str) -> Iterator[Curve]:
        for color, masks in enumerate(self.labels):
            rows = [row for row in range(len(self.densities)) if ("test", row, masks, training) in self.values]
            means = [interval([*self.values["test", row, masks, training].values()]) for row in rows]
            if rows:
                densities = [self.densities[row] for row in rows]
                yield interval_curve(f"masks of {masks}", densities, means, color, factor=metric.factor)

    def _effect_curves(self, metric: ReportMetric) -> Iterator[Curve]:
        effects = [effect for effect in self.effects() if (effect.split, effect.what) == ("test", "mask")]
        for of, given in dict.fromkeys((effect.of, effect.given) for effect in effects):
            these = [effect for effect in effects if (effect.of, effect.given) == (of, given)]
            means = [(effect.difference.mean, effect.difference.half) for effect in these]
            densities = [self.densities[effect.row] for effect in these]
            color = self.labels.index(given)
            yield interval_curve(f"{of}, trained by {given}", densities, means, color, factor=metric.factor)


@dataclass(frozen=True)
class MaskOverlaps:
    """The overlaps that `swamp.analysis.compare_masks` returns, and the densities of its rows."""

    records: tuple[_Record, ...]
    densities: tuple[float, ...]

    @property
    def groups(self) -> dict[str, list[_Record]]:
        """Pairs of runs by kind: two methods or one, with the same seed or different ones."""
        found: dict[str, list[_Record]] = {}
        for record in self.records:
            labels = record["a"] if record["a"] == record["b"] else f"{record['a']} and {record['b']}"
            same = record["seeds"][0] == record["seeds"][1]
            found.setdefault(f"{labels}, {'same seed' if same else 'other seeds'}", []).append(record)
        return found

    def tables(self) -> list[Table]:
        """The overlap of whole masks at each sparsity, and of layers at the last sparsity."""
        rows, layers = range(len(self.densities)), self._layers()
        whole: list[Column] = [
            (_broken(name), [_overlap_cell(_at(found, row)) for row in rows]) for name, found in self.groups.items()
        ]
        by_layer: list[Column] = [
            (_broken(name), [_overlap_cell(self._of_layer(found, layer)) for layer in layers])
            for name, found in self.groups.items()
        ]
        below = (
            "Weights in both masks, as a share of those in either (Jaccard index, %); in brackets the share expected "
            "by chance for masks with the same layer densities; s: share of the weights in both masks that have the "
            "same sign (%). Means over pairs of runs."
        )
        at = f"{100 * (1 - self.densities[-1]):.2f} % sparse"
        return [
            Table.of_columns("Overlap of the masks of two runs", [sparsity_column(self.densities), *whole], below),
            Table.of_columns(f"Overlap by layer, {at}", [("layer", layers), *by_layer], below),
        ]

    def figure(self) -> Figure:
        """Overlap and chance against sparsity, signs, and the layers at the last sparsity."""
        axis, layers = sparsity_axis(self.densities), self._layers()
        bars = tuple(
            BarChart(
                name, layers, tuple(_mean(self._of_layer(found, layer), "above_chance") for layer in layers), color
            )
            for color, (name, found) in enumerate(self.groups.items())
        )
        shares = [*self._curves("jaccard", "line"), *self._curves("expected", "dotted")]
        panels = [
            *panels_of("Weights in both masks (dotted: chance)", axis, Axis("in common (%)"), shares),
            *panels_of("Of these, with the same sign", axis, Axis("same sign (%)"), self._curves("signs", "line")),
            *panels_of("Above chance by layer, last sparsity", Axis(""), Axis("of what is possible (%)"), bars),
        ]
        return Figure(
            "Overlap of the masks of runs",
            "Masks of one ticket that share more than chance were largely determined by it. If two methods share as "
            "much as two seeds of one method, their masks differ by noise and not by method.",
            tuple(panels),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values: a record for each pair of runs and sparsity."""
        return replace_nonfinite(
            {"densities": list(self.densities), "pairs": [dict(record) for record in self.records]}
        )

    def _curves(self, what: str, style: Style) -> Iterator[Curve]:
        for color, (name, found) in enumerate(self.groups.items()):
            y = tuple(_mean(_at(found, row), what) for row in range(len(self.densities)))
            if any(value is not None for value in y):
                listed = style == "line"
                label, notes = (name if listed else f"{name}: chance"), tuple(map(percent_sparse, self.densities))
                yield Curve(label, self.densities, y, color, style, notes=notes, in_legend=listed)

    def _layers(self) -> tuple[str, ...]:
        return tuple(self.records[0]["layers"]) if self.records else ()

    def _of_layer(self, found: Sequence[_Record], layer: str) -> list[_Record]:
        return [record["layers"][layer] for record in _at(found, len(self.densities) - 1)]


def _at(found: Sequence[_Record], row: int) -> list[_Record]:
    return [record for record in found if record["row"] == row]


def _overlap_cell(records: Sequence[_Record]) -> str:
    found, chance, signs = (_mean(records, what) for what in ("jaccard", "expected", "signs"))
    if found is None or chance is None:
        return "–"
    return f"{found:.1f} ({chance:.1f}){'' if signs is None else f' s {signs:.1f}'}"


def _mean(records: Sequence[_Record], what: str) -> Number:
    """The mean in per cent of the values that are finite."""
    values: list[float] = [record[what] for record in records if math.isfinite(record[what])]
    return 100 * fmean(values) if values else None


def _broken(name: str) -> str:
    return name.replace(", ", ",\n").replace(" and ", "\nand ")
