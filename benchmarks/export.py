"""Exported networks beside dense runtimes: the tables of docs/deployment.md.

python benchmarks/export.py [--batch 1,32,128] [--seconds 4] [--out build/export.json]

Weights are random and pruned by magnitude, since speed depends on where zeros are and not on what was learned.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from line import Line
from swamp.datasets import build_network
from swamp.masks import Mask, prune_mask
from swamp.runtime import finalise, kernels, read, save, trace
from swamp.runtime.benchmark import OURS, Latency, benchmark, best_dense, size_of
from swamp.training import Seed, isolated

GOALS = {
    ("mlp-1024-1024", 0.95, 32): 4,
    ("vgg-11", 0.95, 32): 2.4,
    ("resnet-20", 0.95, 32): 1.9,
    ("mlp-1024-1024", 0.99, 32): 7,
    ("vgg-11", 0.99, 32): 7,
    ("resnet-20", 0.99, 32): 4,
}
"""(network, sparsity, batch) -> how many times as fast as the best dense float32 runtime; at batch 1 it is 1."""


def pruned(name: str, sparsity: float) -> tuple[nn.Module, Mask, torch.Tensor]:
    """A network, its mask, and two inputs."""
    with isolated(Seed(0)):
        if name == "linear-4096":
            model, inputs = nn.Sequential(nn.Linear(4096, 4096)), torch.randn(2, 4096)
        else:
            model, inputs = build_network(name, (1, 28, 28), 10), torch.randn(2, 1, 28, 28)
    mask = Mask.ones(model)
    scores = {key: value.detach().abs() for key, value in model.named_parameters() if key in mask}
    mask = prune_mask(
        mask, scores, round((1 - sparsity) * mask.prunable), allocation="erk" if len(mask) > 1 else "global"
    )
    return model, mask, inputs


def measured(name: str, sparsity: float, batches: list[int], seconds: float) -> dict[str, object]:
    model, mask, inputs = pruned(name, sparsity)
    program = trace(finalise(model, mask), inputs)
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for values in (torch.float32, torch.bfloat16):
            path = Path(folder) / "export.safetensors"
            save(program, path, values=values)
            sizes[str(values)] = asdict(size_of(program, path))
            program = read(path) if values == torch.float32 else program
    # Compiled code is slow to come by and, on CPU, near ONNX Runtime: by option, as --runtimes.
    found = benchmark(program, batches, RUNTIMES, seconds)
    rows = []
    for one in found:
        rival = best_dense(found, one.batch)
        rows.append({**asdict(one), "ratio": rival.median / one.median if rival else None})
    for batch in batches:
        rival = best_dense(found, batch)
        ours = next(one for one in found if one.batch == batch and one.runtime == OURS)
        bf16 = [one for one in found if one.batch == batch and one.runtime.endswith("bf16")]
        narrow = min(bf16, key=lambda one: one.median, default=None)
        goal = GOALS.get((name, sparsity, batch), 1 if batch == 1 else None)
        print(
            f"{name:14} {sparsity:.2f} batch {batch:4}: {1e3 * ours.median:8.3f} ms, "
            f"{rival.median / ours.median:5.2f} x {rival.runtime} ({1e3 * rival.median:.3f} ms)"
            + (f", {narrow.median / ours.median:5.2f} x {narrow.runtime}" if narrow else "")
            + (f"   goal {goal}" if goal else "")
            + f"   [{ours.note}]",
            flush=True,
        )
    return {"network": name, "sparsity": sparsity, "sizes": sizes, "latencies": rows}


RUNTIMES: tuple[str, ...] = ()


def exported() -> list[Line]:
    """The goals of speed, as lines of `make bench`."""
    lines: list[Line] = []
    for name, sparsity in dict.fromkeys((name, sparsity) for name, sparsity, _ in GOALS):
        model, mask, inputs = pruned(name, sparsity)
        found = benchmark(trace(finalise(model, mask), inputs), [1, 32], ("torch", *DENSE, OURS))
        for batch in (1, 32):
            goal = f"at least {GOALS.get((name, sparsity, batch), 1)}"
            rival, ours = best_dense(found, batch), _of(found, OURS, batch)
            assert rival is not None
            lines.append(
                _over(f"best dense / exported, {name}, {100 * sparsity:.0f} %, batch {batch}", rival, ours, goal)
            )
    model, mask, inputs = pruned("linear-4096", 0.95)
    found = benchmark(trace(finalise(model, mask), inputs), [32], ("torch", "torch csr", OURS))
    for rival, goal in (("torch", "at least 10"), ("torch csr", "at least 2")):
        label = f"{rival} / exported, linear-4096, 95 %, batch 32"
        lines.append(_over(label, _of(found, rival, 32), _of(found, OURS, 32), goal))
    return lines


def _of(found: list[Latency], runtime: str, batch: int) -> Latency:
    return next(one for one in found if one.batch == batch and one.runtime == runtime)


def _over(label: str, rival: Latency, ours: Latency, goal: str) -> Line:
    spread = rival.median / ours.low - rival.median / ours.high
    return Line(label, rival.median / ours.median, spread, "ratio", goal)


def sizes() -> list[Line]:
    """The goals of size on disk and of the time to compile, as lines of `make bench`."""
    model, mask, inputs = pruned("resnet-20", 0.95)
    program = trace(finalise(model, mask), inputs)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        for values, goal in ((torch.float32, "at least 12"), (torch.bfloat16, "at least 20")):
            path = Path(folder) / "export.safetensors"
            save(program, path, values=values)
            size = size_of(program, path)
            label = f"dense float32 / file, resnet-20, 95 %, {str(values).removeprefix('torch.')}"
            lines.append(Line(label, size.dense_bytes / size.file_bytes, 0.0, "ratio", goal))
        # Compiled for the first time, and tuned.
        first = {**os.environ, "SWAMP_CACHE": folder}
        script = f"import swamp; swamp.load({str(path)!r}, batch=32)"
        took = [_seconds([sys.executable, "-c", script], first if cold else None) for cold in (True, False, False)]
    lines.append(Line("load resnet-20, first time on a machine", took[0], 0.0, "s", "at most 10"))
    return [*lines, Line("load resnet-20, later", min(took[1:]), abs(took[1] - took[2]), "s", "")]


def _seconds(command: list[str], environment: dict[str, str] | None) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    return time.perf_counter() - began


DENSE = tuple(name for name in ("onnxruntime", "openvino") if find_spec(name))


def main() -> None:
    global RUNTIMES
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", default="1,32,128")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--networks", default="mlp-1024-1024,vgg-11,resnet-20")
    parser.add_argument("--sparsity", default="0.95,0.99")
    parser.add_argument("--runtimes", default="torch,onnxruntime,openvino,torch bf16,torch csr,swamp")
    parser.add_argument("--out", type=Path, default=Path("build/export.json"))
    given = parser.parse_args()
    RUNTIMES = tuple(given.runtimes.split(","))
    began = time.perf_counter()
    kernels()
    print(f"kernels ready after {time.perf_counter() - began:.2f} s; load {os.getloadavg()[0]:.1f}")
    batches = [int(size) for size in given.batch.split(",")]
    lines = []
    for name in given.networks.split(","):
        for sparsity in given.sparsity.split(","):
            lines.append(measured(name, float(sparsity), batches, given.seconds))
            given.out.parent.mkdir(exist_ok=True, parents=True)
            given.out.write_text(json.dumps({"load": os.getloadavg(), "measured": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
