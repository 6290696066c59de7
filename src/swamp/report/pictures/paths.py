"""Paths: how particles move away from their ticket and from one another."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from swamp.report.evidence import Evidence, Looked
from swamp.report.picture import Axis, Curve, Number, Panel, Picture


def paths(evidence: Evidence) -> list[Picture]:
    """The plane that holds most of the movement, and distances over training."""
    each = [(looked, record) for looked in evidence.firsts("paths") for record in looked.some("paths")]
    if not each:
        return []
    apart = [panel for looked, record in each[-1:] for panel in _distances(looked, record)]
    return [
        Picture(
            "Where particles go from their ticket",
            "All paths leave from one place; how they turn apart is what their batch orders do, and that they end"
            " around a common middle is why that middle, their mean, is a good network.",
            (*(_plane(looked, record) for looked, record in each), *apart, *_settling(each)),
        )
    ]


def _plane(looked: Looked, record: Mapping[str, Any]) -> Panel:
    marks: list[Curve] = []
    for index, particle in enumerate(record["particles"]):
        steps = tuple(f"step {step}" for step in particle["steps"])
        marks.append(Curve(f"particle {index}", tuple(particle["x"]), tuple(particle["y"]), index, notes=steps))
    ends = [(particle["x"][-1], particle["y"][-1]) for particle in record["particles"] if particle["x"]]
    known = [(x, y) for x, y in ends if x is not None and y is not None]
    if known:
        middle = tuple(fmean(side) for side in zip(*known, strict=True))
        marks.append(Curve("mean of their ends", middle[:1], middle[1:], None, "marks", notes=("mean",)))
    shares: list[Number] = list(record.get("explained") or [])
    named = [f"{100 * share:.0f} %" for share in shares if share is not None]
    axes = [
        Axis(f"direction {n} ({share})" if share else "") for n, share in zip((1, 2), [*named, "", ""], strict=False)
    ]
    title = f"{looked.name}, {100 * record['sparsity']:.1f} % sparse"
    return Panel(title, axes[0], axes[1], tuple(marks), equal=True)


def _distances(looked: Looked, record: Mapping[str, Any]) -> Iterator[Panel]:
    where = f"{looked.name}, {100 * record['sparsity']:.1f} % sparse"
    for name, title in (("from_ticket", "distance from the ticket"), ("between", "distance to the others")):
        curves = [
            Curve(f"particle {index}", tuple(particle["steps"]), tuple(particle[name]), index)
            for index, particle in enumerate(record["particles"])
            if isinstance(particle.get(name), list) and len(particle[name]) == len(particle["steps"])
        ]
        if curves:
            yield Panel(where, Axis("step"), Axis(title), tuple(curves))


def _settling(each: Sequence[tuple[Looked, Mapping[str, Any]]]) -> Iterator[Panel]:
    """The barrier between the first two particles while they train; the step from which it stays low is named."""
    curves: list[Curve] = []
    for looked, record in each:
        barriers: Mapping[str, list[Number]] = record.get("barriers") or {}
        if not barriers.get("steps"):
            continue
        settled = record.get("settled")
        when = "not settled" if settled is None else f"settled from step {settled}"
        name = f"{looked.name}, {100 * record['sparsity']:.1f} % sparse: {when}"
        heights = tuple(None if error is None else 100 * error for error in barriers["error"])
        curves.append(Curve(name, tuple(barriers["steps"]), heights, len(curves)))
    if curves:
        yield Panel("Two particles while they train", Axis("step"), Axis("error barrier (points)"), tuple(curves))
