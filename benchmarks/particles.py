"""Particles trained by each backend against a plain PyTorch loop, in interleaved rounds, and the machine's floor.

python benchmarks/particles.py [NETWORK ...]
"""

import statistics
import sys
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
from swamp.particles import Backend, Forked, Sequential, Silent, Stacked, Threads, Ticket
from swamp.sparsity import Mask
from swamp.tasks import build_network
from swamp.training import Seed, Task, TensorData, Training, isolated


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
}


class Clock(Silent):
    """When each step was reported."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def stepped(self, *report: object) -> None:
        self.at.append(time.perf_counter())


def samples_a_second(backend: Backend, case: Case, task: Task, ticket: Ticket, mask: Mask) -> float:
    """Of all particles together, from the first report on: what is done once before it is no part of a long run."""
    seeds = [(index, Seed(0).at(index)) for index in range(case.particles)]
    training = Training(epochs=1000, batch_size=case.batch, tail=0, swa=False, precision=case.precision)
    clock = Clock()
    backend.train(ticket, mask, training, seeds, last=case.steps, progress=clock)
    # Sequential reports are spread over the whole call; stacked ones come N at a time.
    first = sum(at == clock.at[0] or at - clock.at[0] < 1e-3 for at in clock.at[: case.particles])
    return case.batch * (len(clock.at) - first) / (clock.at[-1] - clock.at[first - 1])


def plain(case: Case, task: Task, mask: Mask) -> float:
    """What a script does: one model after the other in float32, torch's own optimizer, weights times mask."""
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
        spent += time.perf_counter() - began
        done += case.steps - 1
    return case.batch * done / spent


def prepared(case: Case) -> tuple[nn.Module, Task, Mask]:
    generator = torch.Generator().manual_seed(0)
    count = case.batch * 28
    inputs = torch.randn((count, *case.shape), generator=generator)
    data = TensorData(inputs, torch.randint(0, 10, (count,), generator=generator))
    with isolated(Seed(0)):
        model = case.build()
    alive = {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in Mask.ones(model).items()}
    return model, Task(data, data), Mask(alive)


def operations(case: Case) -> int:
    """Of one step of one particle, forward and backward (multiplications and additions)."""
    model = case.build()
    with FlopCounterMode(display=False) as counter:
        inputs = torch.randn(case.batch, *case.shape)
        F.cross_entropy(model(inputs), torch.zeros(case.batch, dtype=torch.long)).backward()
    return counter.get_total_flops()


def matrix_rate(dtype: torch.dtype) -> float:
    """The most operations a second that a large product reaches here."""
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    times: list[float] = []
    for _ in range(12):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(times)


def throughput(name: str, rounds: int = 7) -> list[Line]:
    """For each backend: speed over the plain loop; and of the fastest, the share of the matrix rate."""
    case = CASES[name]
    model, task, mask = prepared(case)
    ticket = Ticket(model.state_dict(), 0)
    backends: dict[str, Backend] = {"sequential": Sequential(model, task), "threads": Threads(model, task)}
    if not any(p.dim() > 2 for p in model.parameters()):
        backends["stacked"] = Stacked(model, task)
    if torch.cuda.is_available():
        backends["forked"] = Forked(model, task)
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
    rate = matrix_rate(torch.bfloat16 if case.precision == "bfloat16" else torch.float32)
    per_sample = operations(case) / case.batch
    share = [speed * per_sample / rate for speed in speeds[best]]
    lines.append(median(f"share of the matrix rate, {best}, {what}", share, f"of {rate / 1e9:.0f} GFLOP/s", ""))
    lines.append(median(f"samples a second, {best}, {what}", speeds[best], "1/s", ""))
    return lines


def main() -> None:
    warnings.simplefilter("ignore")
    table = Table("what", "value", "spread (IQR)", "unit", "goal")
    for name in sys.argv[1:] or CASES:
        for line in throughput(name):
            table.add_row(line.name, f"{line.value:.3g}", f"{line.spread:.2g}", line.unit, line.goal)
    Console(width=140).print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", table)


if __name__ == "__main__":
    main()
