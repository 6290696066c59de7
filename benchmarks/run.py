"""`make bench`: ratios measured side by side in one process, medians with their spread, written to build/bench.json."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from swamp.methods import Plan, cycles
from swamp.sparsity import Mask, shrink
from swamp.tasks import build_network
from swamp.training import Seed, Task, TensorData, Training, crop_flip, fit, isolated

torch.set_num_threads(1)


@dataclass(frozen=True)
class Line:
    name: str
    value: float
    spread: float
    unit: str
    goal: str


def ratio(name: str, ours: Callable[[], object], other: Callable[[], object], goal: str, rounds: int = 9) -> Line:
    """Median over interleaved rounds of time(ours) / time(other): noise of the machine hits both alike."""
    ours(), other()
    found = [_seconds(ours) / _seconds(other) for _ in range(rounds)]
    low, _, high = statistics.quantiles(found, n=4)
    return Line(name, statistics.median(found), high - low, "ratio", goal)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def masked_step(name: str, shape: tuple[int, ...], examples: int) -> Line:
    """A step that holds a mask over a step that does not."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((examples, *shape), generator=generator)
    task = Task.of(
        (inputs, torch.randint(0, 10, (examples,), generator=generator)), [(inputs[:2], torch.tensor([0, 1]))]
    )
    with isolated(Seed(0)):
        model = build_network(name, shape, 10)
    mask = Mask.ones(model)
    training = Training(epochs=1, tail=0, swa=False)
    return ratio(
        f"masked / dense step, {name}",
        lambda: fit(model, task, training, Seed(0), mask=mask),
        lambda: fit(model, task, training, Seed(0)),
        "at most 1.03",
    )


class _OneByOne(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The usual way: each image is cropped and flipped by itself."""

    def __init__(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        self.images, self.targets, self.change = images, targets, crop_flip(2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.Generator().manual_seed(index)
        return self.change(self.images[index][None], noise)[0].float() / 255, self.targets[index]


def data_path() -> Line:
    """An epoch of batches from memory over the same from a DataLoader that augments image by image."""
    images = torch.randint(0, 256, (2048, 1, 28, 28), dtype=torch.uint8)
    targets = torch.zeros(2048, dtype=torch.long)
    memory = TensorData(images, targets, crop_flip(2), lambda batch: batch.float() / 255)
    loader = DataLoader(_OneByOne(images, targets), batch_size=128, shuffle=True)
    return ratio(
        "batches in memory / DataLoader",
        lambda: [None for _ in memory.shuffled(128, Seed(0), 0)],
        lambda: [None for _ in loader],
        "at most 0.1",
        rounds=5,
    )


def pruning() -> Line:
    """Pruning ten million weights over sorting them once."""
    scores = {"a": torch.rand(3000, 3000), "b": torch.rand(1000, 1000)}
    mask = Mask({name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()})
    flat = torch.cat([score.flatten() for score in scores.values()])
    return ratio(
        "prune 10 M weights / sort them",
        lambda: shrink(mask, scores, 2_000_000),
        lambda: flat.sort(),
        "at most 1",
        rounds=5,
    )


def overhead() -> Line:
    """Share of a cycle that is not spent in training: average, BatchNorm, evaluation, barrier, pruning."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(4000, 40, generator=generator), torch.randint(0, 10, (4000,), generator=generator)
    task = Task(*(TensorData(inputs[a:b], targets[a:b]) for a, b in ((0, 3600), (3600, 4000), (3600, 4000))))
    with isolated(Seed(0)):
        model = build_network("mlp-bn-600-200", (40,), 10)
    plan = Plan(sparsity=0.75, alpha=(0.5,), barrier_threshold=1.0)
    shares = [
        1 - sum(particle.seconds for particle in cycle.particles) / cycle.seconds
        for _ in range(3)
        for cycle in cycles(model, task, plan, Training(epochs=20))
        if cycle.index
    ]
    low, _, high = statistics.quantiles(shares, n=4)
    return Line(
        "share of a cycle outside training, MLP", statistics.median(shares), high - low, "share", "at most 0.05"
    )


def main() -> None:
    lines = [masked_step("mlp-300-100", (40,), 6400), masked_step("resnet-20", (1, 28, 28), 256)]
    lines += [data_path(), pruning(), overhead()]
    table = Table("what", "value", "spread (IQR)", "unit", "goal")
    for line in lines:
        table.add_row(line.name, f"{line.value:.3f}", f"{line.spread:.3f}", line.unit, line.goal)
    Console().print(table)
    out = Path("build/bench.json")
    out.parent.mkdir(exist_ok=True)
    values = {x.name: {"value": x.value, "spread": x.spread, "unit": x.unit, "goal": x.goal} for x in lines}
    out.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
