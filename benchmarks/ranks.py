"""Throughput of all ranks of a job relative to one rank, measured in turn, with one torch thread per rank.

torchrun --standalone --nproc-per-node=2 benchmarks/ranks.py [--network resnet-20] [--particles 4] [--rounds 5]

python benchmarks/ranks.py --apart: the same for two independent processes with half of the particles each, about the
limit for two ranks on this machine.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import time
from pathlib import Path
from tempfile import gettempdir
from threading import Event
from typing import Any

import torch

from swamp.backends import Sequential, Ticket, TrainRequest
from swamp.backends.coordinator import Coordinator
from swamp.backends.distributed import Distributed, FolderProgress, follow
from swamp.datasets import build_network
from swamp.masks import Mask
from swamp.training import Seed, Task, Training
from swamp.training.rng import isolated

STEPS = {"mlp-bn-600-200": 28 * 20, "lenet-300-100": 400, "resnet-20": 24}
SHAPES = {"mlp-bn-600-200": (40,), "lenet-300-100": (1, 28, 28), "resnet-20": (1, 28, 28)}


def problem(name: str) -> tuple[torch.nn.Module, Task, Training]:
    """Model, task and training on random examples, as the time does not depend on the data."""
    generator = torch.Generator().manual_seed(0)
    count = 128 * min(STEPS[name], 28)
    inputs = torch.randn((count, *SHAPES[name]), generator=generator)
    targets = torch.randint(0, 10, (count,), generator=generator)
    with isolated(Seed(0)):
        model = build_network(name, SHAPES[name], 10)
    return model, Task.of((inputs, targets), [(inputs[:2], targets[:2])]), Training(epochs=STEPS[name] * 128 // count)


def seconds(backend: Any, *arguments: Any) -> tuple[float, float]:
    """Wall-clock time and processor time in seconds. Other load on the machine changes only the first."""
    began = time.perf_counter(), time.process_time()
    backend.train(TrainRequest(*arguments))
    return time.perf_counter() - began[0], time.process_time() - began[1]


def measure(coordinator: Coordinator, folder: Path, name: str, particles: int, rounds: int, as_json: bool) -> None:
    model, task, training = problem(name)
    alone = Sequential(model, task)
    together = Distributed(alone, coordinator, folder)
    work = Ticket(model.state_dict(), 0), Mask.ones(model), training
    seeds = _seeds(particles)
    found = [(seconds(alone, *work, seeds), seconds(together, *work, seeds)) for _ in range(rounds + 1)][1:]
    if as_json:
        print(json.dumps([one[0] / many[0] for one, many in found]))
        return
    for which, what in enumerate(("by wall-clock time", "by processor time")):
        low, middle, high = statistics.quantiles([one[which] / many[which] for one, many in found], n=4)
        print(
            f"{name}, {coordinator.size} ranks: {middle:.2f} times one rank {what} ({low:.2f} - {high:.2f})", flush=True
        )
    rate = particles * STEPS[name] * 128 / statistics.median(many[0] for _, many in found)
    print(f"{name}, {coordinator.size} ranks: {rate:,.0f} samples/s")


def apart(name: str, particles: int, rounds: int) -> list[float]:
    """Speedup of two independent processes with half of the particles each over one process with all."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=_answer, args=(there, name), daemon=True)
    other.start()
    work = _alone(name)
    half = particles // 2
    found: list[float] = []
    for _ in range(rounds + 1):
        alone, _ = seconds(*work, _seeds(particles))
        began = time.perf_counter()
        here.send(half)
        seconds(*work, _seeds(particles - half))
        here.recv()
        found.append(alone / (time.perf_counter() - began))
    here.send(None)
    other.join()
    return found[1:]


def _answer(pipe: Any, name: str) -> None:
    torch.set_num_threads(1)
    work = _alone(name)
    while particles := pipe.recv():
        pipe.send(seconds(*work, _seeds(particles)))


def _alone(name: str) -> tuple[Any, ...]:
    model, task, training = problem(name)
    return Sequential(model, task), Ticket(model.state_dict(), 0), Mask.ones(model), training


def _seeds(particles: int) -> list[tuple[int, Seed]]:
    return [(index, Seed(0).at("particle", index)) for index in range(particles)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="mlp-bn-600-200", choices=STEPS)
    parser.add_argument("--particles", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print only the ratios of wall-clock time")
    parser.add_argument("--apart", action="store_true", help="two independent processes in place of ranks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.apart:
        print(json.dumps(apart(given.network, given.particles, given.rounds)))
        return
    coordinator = Coordinator.rendezvous(Event(), 600.0)
    # All ranks are on this machine; the port is unique to the job.
    folder = Path(gettempdir(), f"swamp-ranks-{os.environ['MASTER_PORT']}")
    folder.mkdir(exist_ok=True)
    coordinator.require_same({"folder": str(folder)})
    if coordinator.rank:
        model, task, _ = problem(given.network)
        follow(coordinator, folder, lambda choice: Sequential(model, task), FolderProgress)
        coordinator.close("finished")
        return
    try:
        measure(coordinator, folder, given.network, given.particles, given.rounds, given.json)
    finally:
        coordinator.end(0)
        coordinator.close("finished")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
