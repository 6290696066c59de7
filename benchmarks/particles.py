"""Throughput of each backend relative to a plain PyTorch loop, measured in turn, and its share of the matrix rate.

python benchmarks/particles.py [CASE ...]
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from line import Line, median
from swamp.backends import Backend, Progress, Sequential, Threads, Ticket, TrainRequest, Vmapped
from swamp.backends.vmapped import MultiStream
from swamp.datasets import build_network
from swamp.masks import Mask
from swamp.training import Seed, Task, TensorData, Training
from swamp.training.rng import isolated


class Transformer(nn.Module):
    """Three encoder layers of width 128 over 64 tokens of 32 numbers, no dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(32, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.out = nn.Linear(128, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.body(self.embed(inputs)).mean(1))


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    particles: int
    precision: str
    steps: int
    goal: str


def named(name: str, shape: tuple[int, ...]) -> Callable[[], nn.Module]:
    return lambda: build_network(name, shape, 10)


IMAGE = (1, 28, 28)
CASES = {
    "mlp": Case(named("mlp-100-100", (40,)), (40,), 128, 8, "float32", 200, "at least 5.5"),
    "resnet": Case(named("resnet-20", IMAGE), IMAGE, 128, 8, "float32", 5, "at least 1.3"),
    "resnet-bf16": Case(named("resnet-20", IMAGE), IMAGE, 128, 8, "bfloat16", 5, "at least 2.3"),
    "wrn-bf16": Case(named("wrn-16-2", IMAGE), IMAGE, 128, 4, "bfloat16", 5, "at least 2.5"),
    "transformer": Case(Transformer, (64, 32), 32, 4, "float32", 8, "at least 1.5"),
    "transformer-bf16": Case(Transformer, (64, 32), 32, 4, "bfloat16", 8, "at least 1.5"),
}


class Clock(Progress):
    """Times of the reported steps; on a GPU synchronised at the first and the last step."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step(self, index: int, step: int, total: int, snapshot: object) -> None:
        if torch.cuda.is_available() and step in (1, total):
            torch.cuda.synchronize()
        self.at.append(time.perf_counter())


def samples_a_second(backend: Backend, case: Case, task: Task, ticket: Ticket, mask: Mask) -> float:
    """Throughput of all particles from the first reported step on, so that set-up is not counted."""
    seeds = [(index, Seed(0).at(index)) for index in range(case.particles)]
    training = Training(epochs=1000, batch_size=case.batch, swa_fraction=0, swa=False, precision=case.precision)
    clock = Clock()
    backend.train(TrainRequest(ticket, mask, training, seeds, last=case.steps, progress=clock))
    # Sequential reports its steps over the whole call, Vmapped N at a time.
    first = sum(at == clock.at[0] or at - clock.at[0] < 1e-3 for at in clock.at[: case.particles])
    return case.batch * (len(clock.at) - first) / (clock.at[-1] - clock.at[first - 1])


def plain(case: Case, task: Task, mask: Mask) -> float:
    """Throughput of a plain script: models in turn, float32, torch.optim.SGD, weights times mask after each step."""
    done, spent = 0, 0.0
    for index in range(case.particles):
        model = case.build().to(next(iter(task.train.in_order(1)))[0].device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        held = [(p, mask[name].to(p)) for name, p in model.named_parameters() if name in mask]
        epoch, step = 0, 0
        began = time.perf_counter()
        while step < case.steps:
            for inputs, targets in task.train.shuffled(case.batch, Seed(0).at(index), epoch):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                with torch.no_grad():
                    for weight, alive in held:
                        weight.mul_(alive)
                step += 1
                if step == 1:
                    began = time.perf_counter()
                if step == case.steps:
                    break
            epoch += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent += time.perf_counter() - began
        done += case.steps - 1
    return case.batch * done / spent


def on_gpu(name: str, particles: int, precision: str) -> Case:
    """A network on images of 3 x 32 x 32, or the transformer, at batch size 128."""
    if name == "transformer":
        return Case(Transformer, (64, 32), 128, particles, precision, 60, "")
    goal = "at least 4" if (name, particles) == ("resnet-20", 8) else ""
    return Case(named(name, (3, 32, 32)), (3, 32, 32), 128, particles, precision, 60, goal)


def prepared(case: Case, device: str = "cpu") -> tuple[nn.Module, Task, Mask]:
    generator = torch.Generator().manual_seed(0)
    count = case.batch * 28
    inputs = torch.randn((count, *case.shape), generator=generator)
    data = TensorData(inputs, torch.randint(0, 10, (count,), generator=generator))
    with isolated(Seed(0)):
        model = case.build()
    alive = {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in Mask.ones(model).items()}
    return model.to(device), Task(data, data).to(torch.device(device)), Mask(alive)


def operations(case: Case) -> int:
    """FLOPs of one step of one particle, forward and backward; multiplications and additions count separately."""
    model = case.build()
    with FlopCounterMode(display=False) as counter:
        inputs = torch.randn(case.batch, *case.shape)
        F.cross_entropy(model(inputs), torch.zeros(case.batch, dtype=torch.long)).backward()
    return counter.get_total_flops()


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """FLOPs per second of a large matrix product on this machine, the best of 12."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times: list[float] = []
    for _ in range(12):
        began = time.perf_counter()
        (a @ b).sum().item()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def throughput(name: str, case: Case, device: str = "cpu", rounds: int = 5) -> list[Line]:
    """Throughput of each backend relative to the plain loop, and the fastest backend's share of the matrix rate."""
    model, task, mask = prepared(case, device)
    ticket = Ticket(model.state_dict(), 0)
    backends: dict[str, Backend] = {"sequential": Sequential(model, task)}
    if device == "cuda":
        backends |= {"vmapped": Vmapped(model, task), "multi-stream": MultiStream(model, task)}
    else:
        backends["threads"] = Threads(model, task)
        if not any(p.dim() > 2 for p in model.parameters()):
            backends["vmapped"] = Vmapped(model, task)
    found: dict[str, list[float]] = {label: [] for label in backends}
    speeds: dict[str, list[float]] = {label: [] for label in [*backends, "plain"]}
    for turn in range(rounds + 1):
        base = plain(case, task, mask)
        for label, backend in backends.items():
            speed = samples_a_second(backend, case, task, ticket, mask)
            if turn:  # the first round warms up, and compiles
                found[label].append(speed / base)
                speeds[label].append(speed)
        speeds["plain"].append(base)
    best = max(found, key=lambda label: statistics.median(found[label]))
    what = f"{name}, N = {case.particles}"
    lines = [
        median(f"{label} / plain loop, {what}", values, "ratio", case.goal if label == best else "")
        for label, values in found.items()
    ]
    rate = matrix_rate(torch.bfloat16 if case.precision == "bfloat16" else torch.float32, device)
    per_sample = operations(case) / case.batch
    share = [speed * per_sample / rate for speed in speeds[best]]
    lines.append(median(f"share of the matrix rate, {best}, {what}", share, f"of {rate / 1e9:.0f} GFLOP/s", ""))
    lines.append(median(f"samples per second, {best}, {what}", speeds[best], "1/s", ""))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        help=f"cases on CPU (default: all): {', '.join(CASES)}; on a GPU names of networks",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--particles", type=int, nargs="+", default=[1, 4, 8, 16], help="numbers of particles (GPU only)"
    )
    parser.add_argument("--precision", default="bfloat16", help="precision of training (GPU only)")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.device == "cpu":
        cases = {name: CASES[name] for name in given.cases or CASES}
    else:
        cases = {f"{name} N={n}": on_gpu(name, n, given.precision) for name in given.cases for n in given.particles}
    table = Table("what", "value", "spread (IQR)", "unit", "goal")
    for name, case in cases.items():
        for line in throughput(name, case, given.device):
            table.add_row(line.name, f"{line.value:.3g}", f"{line.spread:.2g}", line.unit, line.goal)
    Console(width=140).print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", table)


if __name__ == "__main__":
    main()
