"""Exported networks compared with dense runtimes: the tables of docs/explanation/runtime.md.

python benchmarks/export.py [--batch 1,32,128] [--seconds 4] [--out build/export.json]

Weights are random and pruned by magnitude: speed depends on the positions of the zeros, not on what was learned.
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
from networks import network
from swamp.masks import Mask, prune_mask
from swamp.runtime.archive import read, save
from swamp.runtime.benchmark import SWAMP, Latency, benchmark, best_dense, measure_size
from swamp.runtime.kernels import kernel_library
from swamp.runtime.tracing import bake_mask, trace
from swamp.training import Seed
from swamp.training.rng import isolated

GOALS = {
    ("mlp-1024-1024", 0.95, 32): 4,
    ("vgg-11", 0.95, 32): 2.4,
    ("resnet-20", 0.95, 32): 1.9,
    ("mlp-1024-1024", 0.99, 32): 7,
    ("vgg-11", 0.99, 32): 7,
    ("resnet-20", 0.99, 32): 4,
}
"""(network, sparsity, batch size) -> required speedup over the best dense float32 runtime; 1 at batch size 1."""


def pruned(name: str, sparsity: float) -> tuple[nn.Module, Mask, torch.Tensor]:
    """A network of `networks.network`, its mask, and two inputs."""
    with isolated(Seed(0)):
        model, inputs = network(name)
    mask = Mask.ones(model)
    scores = {key: value.detach().abs() for key, value in model.named_parameters() if key in mask}
    mask = prune_mask(
        mask, scores, round((1 - sparsity) * mask.prunable), allocation="erk" if len(mask) > 1 else "global"
    )
    return model, mask, inputs


def measured(name: str, sparsity: float, batches: list[int], runtimes: list[str], seconds: float) -> dict[str, object]:
    """Sizes and latencies of a network. The comparison with the goals is printed."""
    model, mask, inputs = pruned(name, sparsity)
    program = trace(bake_mask(model, mask), inputs)
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for values in (torch.float32, torch.bfloat16):
            path = Path(folder) / "export.safetensors"
            save(program, path, values=values)
            sizes[str(values)] = asdict(measure_size(program, path))
            program = read(path) if values == torch.float32 else program
    latencies = benchmark(program, batches, runtimes, seconds)
    rows = []
    for one in latencies:
        dense = best_dense(latencies, one.batch)
        rows.append({**asdict(one), "ratio": dense.median / one.median if dense else None})
    for batch in batches:
        _print_speedups(name, sparsity, batch, latencies)
    return {"network": name, "sparsity": sparsity, "sizes": sizes, "latencies": rows}


def _print_speedups(name: str, sparsity: float, batch: int, latencies: list[Latency]) -> None:
    swamp, dense = _of(latencies, SWAMP, batch), best_dense(latencies, batch)
    assert dense is not None
    bf16 = [one for one in latencies if one.batch == batch and one.runtime.endswith("bf16")]
    best_bf16 = min(bf16, key=lambda one: one.median, default=None)
    goal = GOALS.get((name, sparsity, batch), 1 if batch == 1 else None)
    print(
        f"{name:14} {sparsity:.2f} batch {batch:4}: {1e3 * swamp.median:8.3f} ms, "
        f"{dense.median / swamp.median:5.2f} x {dense.runtime} ({1e3 * dense.median:.3f} ms)"
        + (f", {best_bf16.median / swamp.median:5.2f} x {best_bf16.runtime}" if best_bf16 else "")
        + (f"   goal {goal}" if goal else "")
        + f"   [{swamp.note}]",
        flush=True,
    )


DENSE = tuple(name for name in ("onnxruntime", "openvino") if find_spec(name))


def exported() -> list[Line]:
    """Speed and its goals, as lines of `make bench`."""
    lines: list[Line] = []
    for name, sparsity in dict.fromkeys((name, sparsity) for name, sparsity, _ in GOALS):
        model, mask, inputs = pruned(name, sparsity)
        latencies = benchmark(trace(bake_mask(model, mask), inputs), [1, 32], ("torch", *DENSE, SWAMP))
        for batch in (1, 32):
            goal = f"at least {GOALS.get((name, sparsity, batch), 1)}"
            dense, swamp = best_dense(latencies, batch), _of(latencies, SWAMP, batch)
            assert dense is not None
            label = f"best dense / exported, {name}, {100 * sparsity:.0f} %, batch {batch}"
            lines.append(_speedup(label, dense, swamp, goal))
    model, mask, inputs = pruned("linear-4096", 0.95)
    latencies = benchmark(trace(bake_mask(model, mask), inputs), [32], ("torch", "torch csr", SWAMP))
    for runtime, goal in (("torch", "at least 10"), ("torch csr", "at least 2")):
        label = f"{runtime} / exported, linear-4096, 95 %, batch 32"
        lines.append(_speedup(label, _of(latencies, runtime, 32), _of(latencies, SWAMP, 32), goal))
    return lines


def _of(latencies: list[Latency], runtime: str, batch: int) -> Latency:
    return next(one for one in latencies if one.batch == batch and one.runtime == runtime)


def _speedup(label: str, other: Latency, swamp: Latency, goal: str) -> Line:
    spread = other.median / swamp.low - other.median / swamp.high
    return Line(label, other.median / swamp.median, spread, "ratio", goal)


def sizes() -> list[Line]:
    """Size on disk, time to load, and their goals, as lines of `make bench`."""
    model, mask, inputs = pruned("resnet-20", 0.95)
    program = trace(bake_mask(model, mask), inputs)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        for values, goal in ((torch.float32, "at least 12"), (torch.bfloat16, "at least 20")):
            path = Path(folder) / "export.safetensors"
            save(program, path, values=values)
            size = measure_size(program, path)
            label = f"dense float32 / file, resnet-20, 95 %, {str(values).removeprefix('torch.')}"
            lines.append(Line(label, size.dense_bytes / size.file_bytes, 0.0, "ratio", goal))
        # The first load compiles the kernels; every load tunes the network.
        first = {**os.environ, "SWAMP_CACHE": folder}
        command = [sys.executable, "-c", f"import swamp; swamp.load({str(path)!r}, batch=32)"]
        seconds = [_seconds(command, environment) for environment in (first, None, None)]
    lines.append(Line("load resnet-20, first time on a machine", seconds[0], 0.0, "s", "at most 10"))
    return [*lines, Line("load resnet-20, later", min(seconds[1:]), abs(seconds[1] - seconds[2]), "s", "")]


def _seconds(command: list[str], environment: dict[str, str] | None) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", default="1,32,128")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--networks", default="mlp-1024-1024,vgg-11,resnet-20")
    parser.add_argument("--sparsity", default="0.95,0.99")
    # Without torch.compile, which takes long to compile and on a CPU is about as fast as ONNX Runtime.
    parser.add_argument("--runtimes", default="torch,onnxruntime,openvino,torch bf16,torch csr,swamp")
    parser.add_argument("--out", type=Path, default=Path("build/export.json"))
    args = parser.parse_args()
    start = time.perf_counter()
    kernel_library()
    print(f"kernels ready after {time.perf_counter() - start:.2f} s; load average {os.getloadavg()[0]:.1f}")
    batches, runtimes = [int(size) for size in args.batch.split(",")], args.runtimes.split(",")
    results = []
    for name in args.networks.split(","):
        for sparsity in args.sparsity.split(","):
            results.append(measured(name, float(sparsity), batches, runtimes, args.seconds))
            args.out.parent.mkdir(exist_ok=True, parents=True)
            args.out.write_text(json.dumps({"load": os.getloadavg(), "measured": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
