"""The hull of a cycle's particles: how large it is, and what networks inside it are worth."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch

from swamp.analysis.analysis import Settings, Unit, read_analysis
from swamp.analysis.blend import Blend
from swamp.analysis.correlation import spearman
from swamp.analysis.geometry import angles, dimension, distances, listed, products, spectrum
from swamp.analysis.points import Points, Value
from swamp.analysis.simplex import Shares, centre, corner, edge, samples, triangle
from swamp.analysis.soups import greedy, halves, learned
from swamp.analysis.subject import Subject
from swamp.backends import Particle
from swamp.files import digest
from swamp.masks import Mask
from swamp.training import Seed, State

SAMPLES = 20
Record = dict[str, Any]


class Hull:
    """Networks in the hull of some, each evaluated once: shares -> loss and error."""

    def __init__(self, states: Sequence[State], points: Points) -> None:
        self.states = [{name: value.to(points.device) for name, value in state.items()} for state in states]
        self.points = points
        self.known: dict[Shares, Value] = {}

    def __call__(self, places: Sequence[Shares]) -> list[Value]:
        """The values at `places`, in their order."""
        new = [place for place in dict.fromkeys(places) if place not in self.known]
        values = self.points(Blend(self.states, place) for place in new)
        self.known.update(zip(new, values, strict=True))
        return [self.known[place] for place in places]


def hull(subject: Subject, settings: Settings) -> Iterator[Unit]:
    """Do particles span a hull, how large is it, and is its middle better than its corners?"""
    found: dict[int, Record] = {}
    for index in subject.with_particles():
        yield Unit(hull_key(index), partial(_remembered, subject, settings, index, found))
    # Later cycles would change it, and what is written is not written again.
    if subject.cycles == len(subject.config.plan.schedule()):
        yield Unit("hull/all", partial(_of_all, subject, settings, found))


def hull_key(cycle: int) -> str:
    """The name of a cycle's unit."""
    return f"hull/cycle-{cycle:02d}"


def hull_of_cycle(subject: Subject, index: int, settings: Settings) -> Record:
    """The record of one cycle. Raises SwampError where fewer than two of its particles were kept."""
    particles = subject.require_particles(index)
    mask = subject.cycle(index).mask
    states = [particle.weights for particle in particles]
    task = subject.task
    whole = Hull(states, Points(subject.model, task, examples=settings.examples))
    worth = values_of(whole, Seed(settings.seed).at("hull", index))
    return {
        "cycle": index,
        "sparsity": mask.sparsity,
        "particles": len(states),
        "data": "training" if task.validation is None else "validation",
        **size_of(states, mask),
        **seen_from_start(subject, index, particles, mask),
        **worth,
        "soups": soups_of(subject, states, settings),
    }


def size_of(states: Sequence[State], mask: Mask) -> Record:
    """Distances between networks and from their mean, over the prunable weights, and the spread of both."""
    count = len(states)
    inner = products(states, _wide_mean(states, mask), mask)
    values = spectrum(inner)
    apart = distances(inner)
    return {
        "distances": listed(apart),
        "mean_distance": float(apart.sum()) / (count * (count - 1)),
        "radius": float(inner.diagonal().max().sqrt()),
        "spectrum": values,
        "dimension": dimension(values),
    }


def seen_from_start(subject: Subject, index: int, particles: Sequence[Particle], mask: Mask) -> Record:
    """Distances and angles (degrees) from where the particles started, pruned by the mask.

    "start" names it: the ticket, the initial weights, or the model of an earlier cycle; all are null where what the
    particles came from is not in the run.
    """
    start = _start(subject, index, particles[0].ticket)
    if start is None:
        return {"start": None, "angles": None, "to_ticket": None}
    name, weights = start
    pruned = {key: weights[key].cpu() * alive.to(weights[key].dtype).cpu() for key, alive in mask.items()}
    states = [particle.weights for particle in particles]
    inner = products([*states, _wide_mean(states, mask)], pruned, mask)
    lengths = listed(inner.diagonal().sqrt())
    return {
        "start": name,
        "angles": listed(angles(inner[:-1, :-1])),
        "to_ticket": {"particles": lengths[:-1], "mean": lengths[-1]},
    }


def values_of(whole: Hull, seed: Seed) -> Record:
    """Loss and error at the corners, the mean, random points, along the edges and over the first triangle."""
    count = len(whole.states)
    pairs = list(combinations(range(count), 2))
    corners = [corner(n, count) for n in range(count)]
    drawn = samples(SAMPLES, count, seed)
    edges = [edge(i, j, count) for i, j in pairs]
    grid = triangle(count) if count > 2 else []
    # One call, so that as many as can be are evaluated at once.
    whole([*corners, centre(count), *drawn, *(place for side in edges for place in side), *grid])
    ends, (mean,) = whole(corners), whole([centre(count)])
    return {
        "corners": [_plain(value) for value in ends],
        "mean": _plain(mean),
        "samples": [{"weights": list(at), **_plain(value)} for at, value in zip(drawn, whole(drawn), strict=True)],
        "edges": [
            {"between": [i, j], "shares": [place[j] for place in side], **_columns(whole(side))}
            for (i, j), side in zip(pairs, edges, strict=True)
        ],
        "triangle": {"weights": [list(place[:3]) for place in grid], **_columns(whole(grid))} if grid else None,
        "gain": sum(value.error for value in ends) / count - mean.error,
        "loss_gain": sum(value.loss for value in ends) / count - mean.loss,
    }


def soups_of(subject: Subject, states: Sequence[State], settings: Settings) -> Record:
    """Which soup is best: chosen on one half of the examples, all of them compared on the other.

    "best": the particle of least error on the first half, the control of all soups.
    """
    count = len(states)
    parts = halves(subject.task.held_out, settings.examples)
    choosing, comparing = (
        Hull(states, Points(subject.model, subject.task, part, examples=len(part))) for part in parts
    )
    alone = choosing([corner(n, count) for n in range(count)])
    best = min(range(count), key=lambda n: alone[n].error)
    taken, shares = greedy(choosing, count), learned(choosing, count)
    places = [centre(count), corner(best, count), centre(count, taken), shares]
    mean, single, chosen, found = map(_plain, comparing(places))
    return {
        "chosen_on": len(parts[0]),
        "compared_on": len(parts[1]),
        "mean": mean,
        "best": {"particle": best, **single},
        "greedy": {"taken": list(taken), **chosen},
        "learned": {"weights": list(shares), **found},
    }


def _remembered(subject: Subject, settings: Settings, index: int, found: dict[int, Record]) -> Record:
    found[index] = hull_of_cycle(subject, index, settings)
    return found[index]


def _of_all(subject: Subject, settings: Settings, found: dict[int, Record]) -> Record:
    """Rank correlations over the cycles; what an earlier session computed is read back."""
    written = {
        record["cycle"]: record
        for record in read_analysis(subject.directory)
        if record["settings"] == settings.__dict__ and record["key"] == hull_key(record.get("cycle", -1))
    }
    known: Mapping[int, Mapping[str, Any]] = {**written, **found}
    indices = list(subject.with_particles())
    return size_and_gain([known[i] if i in known else hull_of_cycle(subject, i, settings) for i in indices])


def size_and_gain(records: Sequence[Mapping[str, Any]]) -> Record:
    """Spearman correlations over cycles of the hull's size with what averaging gains; null below three cycles.

    Sparsity moves both, so that it stands beside them: a size that tells no more than it does explains nothing.
    """
    if not records:
        reason = "no cycle has two particles on disk: run with --keep particles and --particles 2 or more."
        return {"cycles": 0, "left_out": reason}

    def related(size: str, gain: str) -> float | None:
        pairs = [(line[size], line[gain]) for line in records]
        # A number that is not finite is null once it was written.
        pairs = [pair for pair in pairs if None not in pair and all(map(math.isfinite, pair))]
        if len(pairs) < 3:
            return None
        return spearman(*torch.tensor(pairs, dtype=torch.float64).T)

    sizes = ("radius", "mean_distance", "dimension", "sparsity")
    return {
        "cycles": len(records),
        **{gain: {size: related(size, gain) for size in sizes} for gain in ("gain", "loss_gain")},
    }


def _start(subject: Subject, index: int, wanted: str) -> tuple[str, State] | None:
    """The weights of this id, with their name: what the particles of cycle `index` were trained from."""
    if subject.ticket is not None and subject.ticket.id == wanted:
        return "ticket", subject.ticket.weights
    initial = subject.model.state_dict()
    if digest(initial) == wanted:
        return "initial", initial
    for earlier in dict.fromkeys((index - 1, 0)):
        if 0 <= earlier < index and digest(weights := subject.cycle(earlier).weights) == wanted:
            return f"cycle {earlier}", weights
    return None


def _wide_mean(states: Sequence[State], mask: Mask) -> State:
    # In float64: distances from the mean that is deployed, which is rounded, would not be the particles' own.
    return {name: torch.stack([state[name].double() for state in states]).mean(0) for name in mask}


def _plain(value: Value) -> Record:
    return {"loss": value.loss, "error": value.error}


def _columns(values: Sequence[Value]) -> Record:
    return {"loss": [value.loss for value in values], "error": [value.error for value in values]}
