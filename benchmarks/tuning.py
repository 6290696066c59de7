"""How often `swamp.load` chooses a method within 10 % of the best one, over loads in separate processes.

python benchmarks/tuning.py [--networks mlp-1024-1024,vgg-11,resnet-20] [--loads 20] [--batch 32]

After each load, all methods are measured again, in turn and for longer: that is the reference of this load, because
the load of a machine changes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from export import pruned
from swamp.runtime import network as tuner
from swamp.runtime.archive import read, save
from swamp.runtime.tracing import bake_mask, trace


def load(path: str, batch: int, seconds: float) -> dict[str, object]:
    """The method that a load chose, its time over that of the best one, and the seconds of the load."""
    program = read(path)
    executors: dict[str, tuner.Executor] = {}
    measure = tuner._least_seconds

    def remember(found: dict[str, tuner.Executor], inputs: object) -> dict[str, float]:
        executors.update(found)
        return measure(found, inputs)  # pyright: ignore

    tuner._least_seconds = remember
    start = time.perf_counter()
    loaded = tuner.SparseNetwork(program, batch=batch)
    spent = time.perf_counter() - start
    tuner._TUNING_SECONDS, tuner._DROPPED = seconds, {1: 2.0}  # pyright: ignore
    inputs = loaded.program.example_inputs(batch)
    reference = measure(executors, inputs)
    method = loaded.tuned[batch].method
    return {"method": method, "ratio": reference[method] / min(reference.values()), "seconds": spent}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", default="mlp-1024-1024,vgg-11,resnet-20")
    parser.add_argument("--loads", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--seconds", type=float, default=3.0, help="for the reference after each load")
    parser.add_argument("--load", help="one load of this file, as JSON: how this script calls itself")
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load, args.batch, args.seconds)))
        return
    for name in args.networks.split(","):
        model, mask, inputs = pruned(name, args.sparsity)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "export.safetensors"
            save(trace(bake_mask(model, mask), inputs), path)
            command = [sys.executable, __file__, "--load", str(path), "--batch", str(args.batch)]
            command += ["--seconds", str(args.seconds)]
            found = [
                json.loads(subprocess.run(command, capture_output=True, check=True).stdout.splitlines()[-1])
                for _ in range(args.loads)
            ]
        near = sum(one["ratio"] <= 1.1 for one in found)
        methods = [one["method"] for one in found]
        counts = {method: methods.count(method) for method in dict.fromkeys(methods)}
        seconds = sorted(one["seconds"] for one in found)[len(found) // 2]
        worst = max(one["ratio"] for one in found)
        print(
            f"{name}: {near} of {len(found)} within 10 %, worst {worst:.2f}, load {seconds:.1f} s, {counts}", flush=True
        )


if __name__ == "__main__":
    main()
