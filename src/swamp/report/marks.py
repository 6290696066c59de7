"""What a comparison must say of its runs: particles that broke, and metrics that were no numbers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from swamp.errors import shortened
from swamp.report.read import RunRecord, measured

Said = Callable[[Mapping[str, Any]], Iterator[str]]
"""What is to be said of a cycle."""


def broken_notes(labels: Sequence[str], runs: Sequence[RunRecord]) -> list[str]:
    """For each label the trainings that broke: who, at which learning rate, and what became of it."""

    def broken(cycle: Mapping[str, Any]) -> Iterator[str]:
        return map(_break, cycle.get("broken") or ())

    return [
        f"{label}: {_times(len(said), 'training')} broke (loss or weights not finite): {shortened(said)}."
        for label, said in _by_label(labels, runs, broken).items()
    ]


def unknown_notes(labels: Sequence[str], runs: Sequence[RunRecord], metric: str, split: str) -> list[str]:
    """For each label the cycles whose metric was measured and is no number, as then no mean over seeds is."""

    def said(cycle: Mapping[str, Any]) -> Iterator[str]:
        holders = {"": cycle, **{f", particle {i}": one for i, one in enumerate(cycle["particles"])}}
        for who, holder in holders.items():
            metrics: Mapping[str, object] = holder.get(split) or {}
            value = measured(metrics, metric)
            if value is not None and not math.isfinite(value):
                yield f"cycle {cycle['cycle']}{who}"

    return [
        f"{label}: {split} {metric} was NaN or infinite {_times(len(where), 'time')}, and so is a mean with it: "
        f"{shortened(where)}."
        for label, where in _by_label(labels, runs, said).items()
    ]


def _by_label(labels: Sequence[str], runs: Sequence[RunRecord], said: Said) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for label, run in zip(labels, runs, strict=True):
        for cycle in run.cycles:
            for words in said(cycle):
                found.setdefault(label, []).append(f"seed {run.config['seed']}, {words}")
    return found


def _break(broke: Mapping[str, Any]) -> str:
    where = "the ticket" if broke["cycle"] is None else f"cycle {broke['cycle']}, particle {broke['particle']}"
    then = "left out of the mean" if broke["again"] is None else f"trained again with {broke['again']:g}"
    return f"{where} at learning rate {broke['lr']:g}, {then}"


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
