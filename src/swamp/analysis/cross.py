"""Is it the mask, or how it was trained? Every run's masks, trained from the ticket by every run's training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from threading import Event
from typing import Any

from swamp.algorithms import train_on
from swamp.analysis.subject import begun
from swamp.backends import Choice
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.runs import (
    Reporter,
    RunConfig,
    RunDirectory,
    RunStore,
    differences,
    executing,
    prepare,
    read_mask,
    read_record,
    read_ticket,
    read_weights,
)
from swamp.training import State

TOLERANCE = 0.005
"""How far apart, relative to each other, two densities may lie and still count as one."""
_SHARED = ("task", "model", "data.", "plan.seed")
"""Settings in which runs must agree: whatever begins with one of these."""


@dataclass(frozen=True, eq=False)
class Side:
    """A run: a source of masks, and a way to train them."""

    directory: RunDirectory
    config: RunConfig
    records: tuple[Mapping[str, Any], ...]
    """Of its finished cycles."""

    @classmethod
    def open(cls, path: Path | str) -> "Side":
        """Read a run, but for its data. Raises SwampError where there is none, or no finished cycle yet."""
        directory, config = begun(path)
        records = (read_record(directory, index) for index in range(directory.finished))
        return cls(directory, config, tuple(records))

    def at(self, density: float) -> Mapping[str, Any] | None:
        """The record of the cycle with this density, the nearest where several are close; None where there is none."""
        apart = [(abs(record["density"]["prunable"] / density - 1), index) for index, record in enumerate(self.records)]
        nearest = min(apart, default=(1.0, 0))
        return self.records[nearest[1]] if nearest[0] <= TOLERANCE else None

    def mask(self, cycle: int) -> Mask:
        """The mask of a cycle."""
        return read_mask(self.directory, cycle)

    def weights(self, cycle: int) -> State:
        """The weights of a cycle's model."""
        return read_weights(self.directory, cycle)

    @property
    def name(self) -> str:
        """A name that tells it from runs with other settings."""
        return f"{self.config.plan.method}-{self.config.digest()[:6]}"


@dataclass(frozen=True, eq=False)
class Pair:
    """The masks of one run, and the training of another of the same seed."""

    seed: int
    masks: str
    """Label of the run that found the masks."""
    training: str
    """Label of the run whose method and options train them."""
    source: Side
    trainer: Side
    cycles: Mapping[int, int]
    """Cycle of `trainer` -> cycle of `source` whose mask it takes."""

    @property
    def seconds(self) -> float:
        """What this will take about: what it took the trainer with its own masks."""
        return sum(self.trainer.records[cycle]["seconds"] for cycle in self.cycles)

    def folder(self, out: Path) -> Path:
        """Where its cells are kept below `out`."""
        return out / f"seed{self.seed}-masks-{self.source.name}-training-{self.trainer.name}"


def check(sides: Sequence[Side]) -> None:
    """Raise SwampError unless these runs, of one seed, rewind, and share task, network, data and the very ticket."""
    for side in sides:
        if not side.config.plan.setting.rewinds:
            raise SwampError(
                f"{side.directory.path} is a run of {side.config.plan.method}, which does not train cycle after cycle "
                "from one ticket: its masks and its training cannot be taken apart. Give runs of imp, swamp or others "
                "that rewind (--methods)."
            )
    first = sides[0]
    for other in sides[1:]:
        named = [line for line in differences(first.config, other.config) if line.startswith(_SHARED)]
        if named:
            raise SwampError(
                f"{first.directory.path} and {other.directory.path} differ in {'; '.join(named)}. Masks can be "
                "exchanged between runs of one task, network, data and seed."
            )
        one, two = (side.directory.ticket for side in (first, other))
        for path in (one, two):
            if not path.exists():
                raise SwampError(f"{path} is missing: without the ticket nothing can be trained from it. Restore it.")
        if read_ticket(first.directory).id != read_ticket(other.directory).id:
            raise SwampError(
                f"{one} and {two} are different tickets, so that a difference between masks would be one between "
                "tickets. Run both with the same --seed, --ticket-epochs and training options, on one kind of machine."
            )


def densities(runs: Mapping[int, Mapping[str, Side]], wanted: Sequence[float] = ()) -> tuple[float, ...]:
    """Densities below 1 that all runs of some seed have, highest first; of these the `wanted` sparsities, if given.

    runs: seed -> label -> run. Raises SwampError for a wanted sparsity that is not there, or where there is none.
    """
    found: list[float] = []
    for sides in runs.values():
        first, *others = sides.values()
        for record in first.records:
            density = record["density"]["prunable"]
            shared = density < 1 and all(other.at(density) for other in others)
            if shared and not any(_close(density, known) for known in found):
                found.append(density)
    there = ", ".join(f"{1 - density:.4g}" for density in sorted(found, reverse=True))
    if not found:
        raise SwampError(
            "these runs share no sparsity above 0 at which both have a finished cycle. Make runs of one schedule "
            "(--sparsity, --alpha, --densities)."
        )
    for sparsity in wanted:
        if not any(_close(1 - sparsity, density) for density in found):
            raise SwampError(f"the runs do not all have sparsity {sparsity:g}; there is {there}.")
    chosen = [d for d in found if not wanted or any(_close(1 - sparsity, d) for sparsity in wanted)]
    return tuple(sorted(chosen, reverse=True))


def pairs(runs: Mapping[int, Mapping[str, Side]], rows: Sequence[float]) -> list[Pair]:
    """What must be trained: of each seed, every run's masks by every other run's training, at the densities `rows`."""
    found: list[Pair] = []
    for seed, sides in runs.items():
        for (masks, source), (training, trainer) in permutations(sides.items(), 2):
            both = ((trainer.at(density), source.at(density)) for density in rows)
            cycles = {own["cycle"]: its["cycle"] for own, its in both if own and its}
            if cycles:
                found.append(Pair(seed, masks, training, source, trainer, cycles))
    return found


def trained(pair: Pair, out: Path, reporter: Reporter, stop: Event) -> Iterator[Mapping[str, Any]]:
    """Train the cells of a pair and yield their records; finished ones are read back, unfinished ones gone on with.

    Cells have the batch orders of the trainer's own cycles, so that only the mask differs.
    Raises SwampError where `out` has cells of other masks, RunLocked where another process is at it.
    """
    config = pair.trainer.config
    directory = RunDirectory(pair.folder(out), f"{pair.source.config.digest()}-{config.digest()}")
    masks = {own: pair.source.mask(its) for own, its in pair.cycles.items()}
    if all(_finished(directory, cycle, mask) for cycle, mask in masks.items()):
        yield from (read_record(directory, cycle) for cycle in masks)
        return
    problem, model = prepare(config)
    with directory.locked(), executing(config):
        _same_arithmetic(pair.trainer.directory, directory)
        of = {"masks": str(pair.source.directory.path), "training": str(pair.trainer.directory.path)}
        directory.write(directory.path / "pair.json", {**of, "seed": pair.seed, "cycles": dict(pair.cycles)})
        store = RunStore(directory, reporter, stop, False, config.snapshot_seconds, chained=False)
        ticket = read_ticket(pair.trainer.directory)
        task, plan, training = problem.task, config.plan, config.training
        for cycle in train_on(masks, ticket, model, task, plan, training, backend=config.backend, store=store):
            yield read_record(directory, cycle.index)


def cross(
    runs: Mapping[int, Mapping[str, Side]],
    rows: Sequence[float],
    out: Path,
    reporter: Reporter,
    stop: Event,
    tell: Callable[[Pair], None] = lambda pair: None,
) -> list[dict[str, Any]]:
    """Every cell at the densities `rows`: {"seed", "masks", "training", "row", "record"}.

    runs: seed -> label -> run. The cells of a run's masks and its own training are its own cycles; the others are
    trained now, or read back from `out`. tell: hears of each pair before its training.
    """
    for sides in runs.values():
        check(list(sides.values()))
    cells = [
        {"seed": seed, "masks": label, "training": label, "row": row, "record": record}
        for seed, sides in runs.items()
        for label, side in sides.items()
        for row, density in enumerate(rows)
        if (record := side.at(density)) is not None
    ]
    for pair in pairs(runs, rows):
        tell(pair)
        for record in trained(pair, out, reporter, stop):
            own: float = pair.trainer.records[int(record["cycle"])]["density"]["prunable"]
            row = next(row for row, density in enumerate(rows) if _close(own, density))
            cells.append(
                {"seed": pair.seed, "masks": pair.masks, "training": pair.training, "row": row, "record": record}
            )
    return cells


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * other


def _finished(directory: RunDirectory, cycle: int, mask: Mask) -> bool:
    return directory.record(cycle).exists() and read_record(directory, cycle)["digest"]["mask"] == mask.digest


def _same_arithmetic(trainer: RunDirectory, cells: RunDirectory) -> None:
    """Particles are trained the way that the trainer's own were: another way rounds differently."""
    if trainer.backend.exists() and not cells.backend.exists():
        cells.write(cells.backend, Choice.from_json(trainer.read(trainer.backend)).to_json())
