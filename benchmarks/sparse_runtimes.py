"""Exported networks compared with other sparse runtimes: a table of docs/explanation/runtime.md.

make deepsparse && python benchmarks/sparse_runtimes.py [--networks mlp-1024-1024] [--seconds 3] [--json FILE]

Each runtime has a process of its own (worker.py), which sleeps while another one is measured. They are measured in
turn, with the same inputs and number of threads. Finished cells in the JSON file are not measured again.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export import pruned
from swamp.runtime.archive import save
from swamp.runtime.tracing import bake_mask, trace

ROOT = Path(__file__).parent.parent
DEEPSPARSE, SPARSELAB = ROOT / "build/deepsparse", ROOT / "build/sparselab"
NETWORKS = {
    **dict.fromkeys(("mlp-1024-1024", "resnet-20", "vgg-11", "resnet-18-32"), (1, 32, 128)),
    "resnet-18-224": (1,),
    "minilm": (1, 8),
}
"""Network (see networks.py) -> batch sizes."""
SWAMP = "swamp"
GOAL = 1.3
"""Required median time of DeepSparse, relative to swamp's."""
_TURN = 0.06
"""Seconds for which a runtime runs before it is the turn of the next."""

Record = dict[str, Any]


class Worker:
    """A process that executes networks in one runtime."""

    def __init__(self, runtime: str, threads: int) -> None:
        self.runtime = runtime
        python = DEEPSPARSE / "bin/python" if runtime == "deepsparse" else sys.executable
        settings = {"OMP_NUM_THREADS": str(threads), "NM_DISABLE_ANALYTICS": "1"}
        if runtime == "sparselab":
            settings["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SPARSELAB), os.environ.get("PYTHONPATH")]))
        # -P: this folder has modules with the names of libraries.
        command = [str(python), "-P", str(Path(__file__).with_name("worker.py")), runtime]
        pipe, environment = subprocess.PIPE, {**os.environ, **settings}
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
        )

    def ask(self, **request: Any) -> Record:
        """The reply to a request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.runtime} ended with status {self.process.wait()} on {request}")
        return json.loads(line)


@contextmanager
def workers(runtimes: list[str], threads: int) -> Iterator[list[Worker]]:
    """A process for each runtime."""
    with ExitStack() as stack:
        started = [Worker(name, threads) for name in runtimes]
        for one in started:
            stack.enter_context(one.process)
            stack.callback(one.process.kill)
        yield started


def measured(started: list[Worker], seconds: float, clock: str) -> dict[str, Record]:
    """Latency of each runtime: the median and the quartiles over turns of the median of a turn."""
    medians: dict[str, list[float]] = {one.runtime: [] for one in started}
    end = time.perf_counter() + seconds
    while len(medians[SWAMP]) < 5 or time.perf_counter() < end:
        for one in started:
            medians[one.runtime].append(one.ask(run=_TURN, clock=clock)["median"])
    idle = {one.runtime: one.ask(idle=0.2)["share"] for one in started}
    found: dict[str, Record] = {}
    for name, own in medians.items():
        low, _, high = statistics.quantiles(own, n=4)
        found[name] = {"median": statistics.median(own), "low": low, "high": high, "idle": idle[name]}
    return found


def cells(name: str, sparsity: float, batches: list[int], runtimes: list[str], args: Any) -> Iterator[Record]:
    """The measurements of a network with each batch size."""
    model, mask, examples = pruned(name, sparsity)
    baked = bake_mask(model, mask)
    with tempfile.TemporaryDirectory() as folder, workers(runtimes, args.threads) as started, torch.no_grad():
        files = {name: f"{folder}/{name}" for name in ("swamp.safetensors", "network.onnx", "inputs.npy")}
        save(trace(baked, examples), files["swamp.safetensors"])
        for batch in batches:
            inputs = examples[torch.arange(batch) % len(examples)]
            np.save(files["inputs.npy"], inputs.numpy())
            expected = baked(inputs).numpy()
            _to_onnx(baked, inputs, files["network.onnx"])
            notes: dict[str, Record] = {}
            for one in started:
                path = files["network.onnx" if one.runtime == "deepsparse" else "swamp.safetensors"]
                own = f"{folder}/{one.runtime}.npy"
                loaded = one.ask(load=path, inputs=files["inputs.npy"], outputs=own, threads=args.threads)
                error = float(np.abs(np.load(own) - expected).max() / np.abs(expected).max())
                notes[one.runtime] = {**loaded, "error": error}
            load = os.getloadavg()[0]
            found = {key: {**one, **notes[key]} for key, one in measured(started, args.seconds, args.clock).items()}
            yield {**_key(name, sparsity, batch, args.threads), "load": load, "runtimes": found}


def _to_onnx(model: torch.nn.Module, inputs: torch.Tensor, path: str) -> None:
    """Dense, float32, for this batch size, with the newest operators that DeepSparse knows."""
    for module in model.modules():
        if hasattr(module, "set_attn_implementation"):  # fused attention needs newer operators
            module.set_attn_implementation("eager")  # pyright: ignore
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (inputs,), path, dynamo=False, opset_version=13)


def _key(name: str, sparsity: float, batch: int, threads: int) -> Record:
    return {"network": name, "sparsity": sparsity, "batch": batch, "threads": threads}


def _runtimes(name: str) -> list[str]:
    """sparselab has products of sparse matrices, hence MLPs."""
    return [SWAMP, "deepsparse", *(["sparselab"] if name.startswith("mlp") and SPARSELAB.exists() else [])]


def described(cell: Record) -> str:
    """A line about a cell."""
    ours = cell["runtimes"][SWAMP]
    text = f"{cell['network']:14} {cell['sparsity']:.2f} batch {cell['batch']:4}: {1e3 * ours['median']:8.3f} ms"
    for name, one in cell["runtimes"].items():
        if name != SWAMP:
            text += f", {one['median'] / ours['median']:6.2f} x {name} ({1e3 * one['median']:.3f} ms)"
        if one["error"] > 1e-4:
            text += f", OUTPUTS OF {name} DIFFER BY {one['error']:.1g}"
        if one["idle"] > 0.1:
            text += f", {name} uses {one['idle']:.0%} of a core while it waits"
    return text + f"   [{ours['note']}]"


def table(measurements: list[Record], other: str) -> Iterator[str]:
    """How many times as fast as another runtime swamp is, with the latencies of both, in Markdown."""
    found = [cell for cell in measurements if other in cell["runtimes"]]
    batches = sorted({cell["batch"] for cell in found})
    yield "| network | sparsity | " + " | ".join(f"batch {batch}" for batch in batches) + " |"
    yield "|---|---|" + "---|" * len(batches)
    for (name, sparsity), group in itertools.groupby(found, lambda cell: (cell["network"], cell["sparsity"])):
        by_batch = {cell["batch"]: cell["runtimes"] for cell in group}
        entries = (_entry(by_batch[batch], other) if batch in by_batch else "" for batch in batches)
        yield f"| {name} | {100 * sparsity:.0f} % | " + " | ".join(entries) + " |"


def _entry(runtimes: Mapping[str, Record], other: str) -> str:
    theirs, ours = runtimes[other]["median"], runtimes[SWAMP]["median"]
    ratio = f"{theirs / ours:.2f}"
    emphasised = f"**{ratio}**" if other == "deepsparse" and theirs < GOAL * ours else ratio
    return f"{emphasised} ({1e3 * theirs:.3g} / {1e3 * ours:.3g} ms)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--sparsity", default="0.9,0.95,0.99")
    parser.add_argument("--batch", help="default: see NETWORKS")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="for each cell, all runtimes together")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: seconds of processor time, for one thread on a machine with other load",
    )
    parser.add_argument("--json", type=Path, default=Path("build/sparse_runtimes.json"))
    args = parser.parse_args()
    measurements: list[Record] = json.loads(args.json.read_text()) if args.json.exists() else []
    done = [{key: cell[key] for key in ("network", "sparsity", "batch", "threads")} for cell in measurements]
    for name, sparsity in itertools.product(args.networks.split(","), map(float, args.sparsity.split(","))):
        batches = map(int, args.batch.split(",")) if args.batch else NETWORKS.get(name, (1, 32, 128))
        batches = [size for size in batches if _key(name, sparsity, size, args.threads) not in done]
        for cell in cells(name, sparsity, batches, _runtimes(name), args) if batches else ():
            print(described(cell), flush=True)
            measurements.append(cell)
            args.json.parent.mkdir(exist_ok=True, parents=True)
            args.json.write_text(json.dumps(measurements, indent=1) + "\n")
    order = [*NETWORKS, *(cell["network"] for cell in measurements)]
    measurements.sort(key=lambda cell: (order.index(cell["network"]), cell["sparsity"]))
    measurements = [cell for cell in measurements if cell["threads"] == args.threads]
    for other in ("deepsparse", "sparselab"):
        if any(other in cell["runtimes"] for cell in measurements):
            print(f"\nMedian time of {other} / swamp (both latencies):\n", *table(measurements, other), sep="\n")
    ratios = [cell["runtimes"]["deepsparse"]["median"] / cell["runtimes"][SWAMP]["median"] for cell in measurements]
    print(f"\n{sum(ratio >= GOAL for ratio in ratios)} of {len(ratios)} cells reach {GOAL} times DeepSparse")


if __name__ == "__main__":
    main()
