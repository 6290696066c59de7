"""Masks by training: train the masks of each run with the training of each other run, from their common ticket."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from threading import Event
from typing import Any

from swamp.algorithms.loop import train_on
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.runs import read_mask, read_record, read_ticket
from swamp.runs.checkpoints import RunStore
from swamp.runs.config import RunConfig, differences
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import backend_for, executing, prepare
from swamp.runs.read import TOLERANCE, open_with_cycles, read_choice, record_at
from swamp.runs.run_progress import Reporter

_SHARED = ("task", "model", "data.", "plan.seed")
"""Settings that start with one of these must be equal in all runs."""


@dataclass(frozen=True, eq=False)
class MaskSource:
    """A run as a source of masks, read without its data."""

    directory: RunDirectory
    config: RunConfig
    records: tuple[Mapping[str, Any], ...]
    """Records of the finished cycles."""

    @classmethod
    def open(cls, path: Path | str) -> "MaskSource":
        """Read the run in the directory `path`.

        Raises:
            SwampError: `path` holds no run, or no finished cycle.
        """
        directory, config = open_with_cycles(path)
        records = (read_record(directory, index) for index in range(directory.finished))
        return cls(directory, config, tuple(records))

    def at(self, density: float) -> Mapping[str, Any] | None:
        """The record of the cycle with the nearest density; None if none is within TOLERANCE."""
        return record_at(self.records, density)

    @property
    def name(self) -> str:
        """Method and configuration digest: differs from runs with other settings."""
        return f"{self.config.plan.method}-{self.config.digest()[:6]}"


@dataclass(frozen=True, eq=False)
class MaskTraining:
    """The masks of one run, to be trained with the training of another run of the same seed."""

    seed: int
    masks: str
    """Label of the run that found the masks."""
    training: str
    """Label of the run whose method and options train them."""
    source: MaskSource
    trainer: MaskSource
    cycles: Mapping[int, int]
    """Cycle of `trainer` -> cycle of `source` that has the mask."""

    @property
    def seconds(self) -> float:
        """Estimated training time: the time that the trainer took for the same cycles."""
        return sum(self.trainer.records[cycle]["seconds"] for cycle in self.cycles)

    def folder(self, out: Path) -> Path:
        """The folder below `out` for the trained cycles."""
        return out / f"seed{self.seed}-masks-{self.source.name}-training-{self.trainer.name}"


def require_same_ticket(runs: Sequence[MaskSource]) -> None:
    """Raise SwampError unless all runs rewind, and have the same task, network, data, seed and ticket."""
    for run in runs:
        if not run.config.plan.spec.rewinds:
            raise SwampError(
                f"{run.directory.path} is a run of {run.config.plan.method}, which does not train every cycle from one "
                "ticket: its masks and its training cannot be separated. Give runs of imp, swamp or other methods that "
                "rewind (--methods)."
            )
    first = runs[0]
    for other in runs[1:]:
        named = [line for line in differences(first.config, other.config) if line.startswith(_SHARED)]
        if named:
            raise SwampError(
                f"{first.directory.path} and {other.directory.path} differ in {'; '.join(named)}. Masks can be "
                "exchanged only between runs with the same task, network, data and seed."
            )
        one, two = (run.directory.ticket for run in (first, other))
        for path in (one, two):
            if not path.exists():
                raise SwampError(f"{path} is missing: masks cannot be trained without the ticket. Restore it.")
        if read_ticket(first.directory).id != read_ticket(other.directory).id:
            raise SwampError(
                f"{one} and {two} are different tickets: masks could not be compared independently of the ticket. "
                "Run both with the same --seed, --ticket-epochs and training options, on the same kind of machine."
            )


def shared_densities(
    runs: Mapping[int, Mapping[str, MaskSource]], sparsities: Sequence[float] = ()
) -> tuple[float, ...]:
    """Densities below 1 at which all runs of a seed have a cycle, in descending order.

    Args:
        runs: seed -> label -> run.
        sparsities: restrict the result to these sparsities (default: all).

    Raises:
        SwampError: the runs share no density, or not one of `sparsities`.
    """
    found: list[float] = []
    for of_seed in runs.values():
        first, *others = of_seed.values()
        for record in first.records:
            density = record["density"]["prunable"]
            shared = density < 1 and all(other.at(density) for other in others)
            if shared and not any(_close(density, known) for known in found):
                found.append(density)
    available = ", ".join(f"{1 - density:.4g}" for density in sorted(found, reverse=True))
    if not found:
        raise SwampError(
            "these runs have no finished cycles of equal sparsity above 0. Make runs with the same schedule "
            "(--sparsity, --prune-fraction, --densities)."
        )
    for sparsity in sparsities:
        if not any(_close(1 - sparsity, density) for density in found):
            raise SwampError(f"not all runs have sparsity {sparsity:g}; all have {available}.")
    chosen = [d for d in found if not sparsities or any(_close(1 - sparsity, d) for sparsity in sparsities)]
    return tuple(sorted(chosen, reverse=True))


def mask_trainings(runs: Mapping[int, Mapping[str, MaskSource]], densities: Sequence[float]) -> list[MaskTraining]:
    """All combinations to train: the masks of each run with the training of each other run of the same seed."""
    found: list[MaskTraining] = []
    for seed, of_seed in runs.items():
        for (masks, source), (training, trainer) in permutations(of_seed.items(), 2):
            both = ((trainer.at(density), source.at(density)) for density in densities)
            cycles = {own["cycle"]: its["cycle"] for own, its in both if own and its}
            if cycles:
                found.append(MaskTraining(seed, masks, training, source, trainer, cycles))
    return found


def train_masks(job: MaskTraining, out: Path, reporter: Reporter, stop: Event) -> Iterator[Mapping[str, Any]]:
    """Train the masks of one combination and yield the cycle records; finished cycles are read from `out`.

    Particles get the batch orders of the trainer's cycles, so that only the mask differs.

    Raises:
        SwampError: `out` holds cycles trained on other masks.
        RunLocked: another process is training this combination.
    """
    config = job.trainer.config
    directory = RunDirectory(job.folder(out), f"{job.source.config.digest()}-{config.digest()}")
    masks = {own: read_mask(job.source.directory, its) for own, its in job.cycles.items()}
    if all(_finished(directory, cycle, mask) for cycle, mask in masks.items()):
        yield from (read_record(directory, cycle) for cycle in masks)
        return
    problem, model = prepare(config)
    with directory.locked(), executing(config):
        _copy_backend_choice(job.trainer.directory, directory)
        of = {"masks": str(job.source.directory.path), "training": str(job.trainer.directory.path)}
        directory.write(directory.path / "pair.json", {**of, "seed": job.seed, "cycles": dict(job.cycles)})
        store = RunStore(directory, reporter, stop, False, config.snapshot_seconds, chained=False)
        ticket = read_ticket(job.trainer.directory)
        task, plan, training = problem.task, config.plan, config.training
        backend = config.backend if problem.agent is None else backend_for(config, problem, model)
        for cycle in train_on(masks, ticket, model, task, plan, training, backend=backend, store=store):
            yield read_record(directory, cycle.index)


def cross_train(
    runs: Mapping[int, Mapping[str, MaskSource]],
    densities: Sequence[float],
    out: Path,
    reporter: Reporter,
    stop: Event,
    on_start: Callable[[MaskTraining], None] = lambda job: None,
) -> list[dict[str, Any]]:
    """Combine the masks of each run with the training options of each run of the same seed, and measure the result.

    Where masks and training are of the same run, its own cycles are the result. All other combinations are trained now,
    or read from `out` if an earlier call has trained them.

    Args:
        runs: seed -> label -> run.
        densities: see `shared_densities`.
        out: folder for the trained cycles.
        reporter: receives the progress of training.
        stop: when set, training stops with Interrupted; finished cycles are kept.
        on_start: called before each combination is trained.

    Returns:
        A dict {"seed", "masks", "training", "row", "record"} for each combination and density. "masks" and "training"
        are labels of runs, "row" is the index in `densities`, and "record" is the record of the cycle.

    Raises:
        SwampError: the runs of a seed do not have the same ticket.
    """
    for of_seed in runs.values():
        require_same_ticket(list(of_seed.values()))
    cells = [
        {"seed": seed, "masks": label, "training": label, "row": row, "record": record}
        for seed, of_seed in runs.items()
        for label, run in of_seed.items()
        for row, density in enumerate(densities)
        if (record := run.at(density)) is not None
    ]
    for job in mask_trainings(runs, densities):
        on_start(job)
        for record in train_masks(job, out, reporter, stop):
            own: float = job.trainer.records[int(record["cycle"])]["density"]["prunable"]
            row = next(row for row, density in enumerate(densities) if _close(own, density))
            cells.append({"seed": job.seed, "masks": job.masks, "training": job.training, "row": row, "record": record})
    return cells


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * other


def _finished(directory: RunDirectory, cycle: int, mask: Mask) -> bool:
    return directory.record(cycle).exists() and read_record(directory, cycle)["digest"]["mask"] == mask.digest


def _copy_backend_choice(trainer: RunDirectory, cells: RunDirectory) -> None:
    """Use the backend of the trainer's run: another backend would round differently."""
    if (choice := read_choice(trainer)) and not cells.backend.exists():
        cells.write(cells.backend, choice.to_json())
