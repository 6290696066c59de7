"""`make bench`: ratios measured in turn in one process, medians with their spread, written to build/bench.json.

python benchmarks/run.py [PART ...]     # all parts, or only these; other lines of build/bench.json stay
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from export import exported, sizes
from line import Line, median, ratio, ratios, seconds
from particles import CASES, throughput
from reference import swamp_by_hand
from swamp.algorithms import Plan
from swamp.algorithms.loop import cycles
from swamp.datasets import build_network
from swamp.masks import Mask, prune_mask
from swamp.recipes import recipe_named
from swamp.runs.execute import start
from swamp.runs.run_progress import Reporter
from swamp.training import Seed, Task, TensorData, Training, crop_flip
from swamp.training.loop import fit
from swamp.training.options import Precision
from swamp.training.rng import isolated


def masked_step(name: str, shape: tuple[int, ...], examples: int) -> Line:
    """Time of a step with a mask relative to a step without."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((examples, *shape), generator=generator)
    task = Task.of(
        (inputs, torch.randint(0, 10, (examples,), generator=generator)), [(inputs[:2], torch.tensor([0, 1]))]
    )
    with isolated(Seed(0)):
        model = build_network(name, shape, 10)
    mask = Mask.ones(model)
    training = Training(epochs=1, swa_fraction=0, swa=False)
    return ratio(
        f"masked / dense step, {name}",
        lambda: fit(model, task, training, Seed(0), mask=mask),
        lambda: fit(model, task, training, Seed(0)),
        "at most 1.03",
    )


class _OneByOne(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The usual Dataset: each image is cropped and flipped by itself."""

    def __init__(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        self.images, self.targets, self.change = images, targets, crop_flip(2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.Generator().manual_seed(index)
        return self.change(self.images[index][None], noise)[0].float() / 255, self.targets[index]


def data_path() -> Line:
    """Time of an epoch of batches from memory relative to a DataLoader that augments one image at a time."""
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
    """Time to prune ten million weights relative to sorting them once."""
    scores = {"a": torch.rand(3000, 3000), "b": torch.rand(1000, 1000)}
    mask = Mask({name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()})
    flat = torch.cat([score.flatten() for score in scores.values()])
    return ratio(
        "prune 10 M weights / sort them",
        lambda: prune_mask(mask, scores, 2_000_000),
        lambda: flat.sort(),
        "at most 1",
        rounds=5,
    )


def overhead() -> Line:
    """Share of a cycle outside training: averaging, BatchNorm, evaluation, barrier, pruning, checkpoints."""
    torch.set_num_threads(1)
    config = recipe_named("mnist1d-mlp")()
    config = replace(config, plan=replace(config.plan, sparsity=0.7), backend="sequential")
    with tempfile.TemporaryDirectory() as folder:
        done = start(config, Path(folder) / "run", Reporter(), Event())
    shares = [1 - sum(p["seconds"] for p in cycle["particles"]) / cycle["seconds"] for cycle in done["cycles"]]
    return median("share of a cycle outside training, default recipe", shares, "share", "at most 0.05")


def job(name: str, images: int, epochs: int, goal: str, precision: Precision = "float32", held_out: int = 1000) -> Line:
    """Time of reference.py relative to swamp for a whole SWAMP job with the same networks, data and steps."""
    torch.set_num_threads(os.cpu_count() or 1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images + held_out, 1, 28, 28), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 10, (images + held_out,), generator=generator)
    train, test = (pixels[:images], targets[:images]), (pixels[images:], targets[images:])

    def scale(batch: torch.Tensor) -> torch.Tensor:
        return batch.float() / 255

    task = Task(TensorData(*train, crop_flip(2), scale), TensorData(*test, None, scale))
    # The script evaluates on test data only, and measures no barrier.
    plan = Plan(densities=(1.0, 0.6), particles=(4,), ticket_epochs=1, barrier_points=0, evaluation_examples=128)
    training = Training(epochs=epochs, swa_fraction=0.25, precision=precision)

    def model() -> torch.nn.Module:
        with isolated(Seed(0)):
            return build_network(name, (1, 28, 28), 10)

    def ours() -> None:
        list(cycles(model(), task, plan, training))

    def plain(workers: int) -> None:
        swamp_by_hand(model(), train, test, particles=4, cycles=2, epochs=epochs, workers=workers)

    # The faster choice for the script: its own process, or one worker per core, which are forked at every epoch.
    workers = min((0, os.cpu_count() or 1), key=lambda count: seconds(partial(plain, count)))
    found = [1 / value for value in ratios(ours, partial(plain, workers), rounds=3)]
    return median(f"plain script / ours, SWAMP (4), {name}, {precision}", found, "ratio", goal)


def memory(name: str = "resnet-20") -> Line:
    """Resident memory of one more particle with `threads`, measured in separate processes."""
    found = [(_peak(name, 8) - _peak(name, 2)) / 6 for _ in range(3)]
    return median(f"memory per particle, threads, {name}", found, "MB", "")


def _peak(name: str, particles: int) -> float:
    script = Path(__file__).with_name("peak.py")
    done = subprocess.run([sys.executable, script, name, str(particles)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def ranks(network: str) -> list[Line]:
    """Throughput of two ranks relative to one, a thread each, and the limit for two processes: see ranks.py."""
    script = [Path(__file__).with_name("ranks.py"), "--network", network]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    def found(command: list[str | Path]) -> list[float]:
        return json.loads(subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True).stdout)

    return [
        median(f"2 ranks / 1, {network}", found([*two, *script, "--json"]), "ratio", "at least 1.9"),
        median(f"2 independent processes / 1, {network}", found([*script, "--apart"]), "ratio", ""),
    ]


def _particles(name: str) -> Callable[[], list[Line]]:
    def measured() -> list[Line]:
        torch.set_num_threads(os.cpu_count() or 1)
        return throughput(name, CASES[name])

    return measured


PARTS: dict[str, Callable[[], list[Line]]] = {
    "masked": lambda: [masked_step("mlp-300-100", (40,), 64_000), masked_step("resnet-20", (1, 28, 28), 256)],
    "data": lambda: [data_path()],
    "pruning": lambda: [pruning()],
    "overhead": lambda: [overhead()],
    **{name: _particles(name) for name in CASES},
    # About as many steps as the recipe fashion-mnist-lenet.
    "lenet-job": lambda: [job("lenet-300-100", 2560, 40, "at least 3", held_out=427)],
    # As many test images per training image as Fashion-MNIST; ten minutes.
    "resnet-job": lambda: [job("resnet-20", 640, 8, "at least 2", "bfloat16", 128)],
    "exported": exported,
    "sizes": sizes,
    "ranks": lambda: [*ranks("mlp-bn-600-200"), *ranks("resnet-20")],
    "memory": lambda: [memory()],
}


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"parts to measure (default: all): {', '.join(PARTS)}")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}.")
    out = Path("build/bench.json")
    out.parent.mkdir(exist_ok=True)
    values = json.loads(out.read_text()) if given.parts and out.exists() else {}
    for part in given.parts or PARTS:
        console = Console(width=140)
        table = Table("what", "value", "spread (IQR)", "unit", "goal", title=part)
        for line in PARTS[part]():
            table.add_row(line.name, f"{line.value:.4g}", f"{line.spread:.2g}", line.unit, line.goal)
            values[line.name] = {"value": line.value, "spread": line.spread, "unit": line.unit, "goal": line.goal}
        # After each part, because measuring takes hours and may be interrupted.
        out.write_text(json.dumps(values, indent=1) + "\n")
        console.print(table)


if __name__ == "__main__":
    main()
