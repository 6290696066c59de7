"""A process that executes networks in one runtime, for sparse_runtimes.py: JSON lines in, JSON lines out.

It runs in the environment of the runtime, and imports nothing but numpy and that runtime.

    {"load": FILE, "inputs": FILE, "outputs": FILE, "threads": N}  ->  {"note": TEXT}; outputs are written
    {"run": SECONDS, "clock": "wall" or "processor"}               ->  {"median": seconds of a call, "calls": N}
    {"idle": SECONDS}                                              ->  {"share": processor time while waiting}
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Call = Callable[[], Any]


def deepsparse(path: str, inputs: Any, threads: int) -> tuple[Call, str]:
    """DeepSparse, without the check of inputs that it does in Python."""
    from deepsparse import Engine  # pyright: ignore

    engine = Engine(path, batch_size=len(inputs), num_cores=threads)
    return lambda: engine.run([inputs], val_inp=False)[0], ""


def swamp(path: str, inputs: Any, threads: int) -> tuple[Call, str]:
    """swamp.load, tuned for this batch size."""
    import torch

    import swamp

    torch.set_num_threads(threads)
    network: Any = swamp.load(path, batch=len(inputs))
    (tuned,) = network.tuned.values()
    tensor = torch.from_numpy(inputs)
    note = f"{tuned.method}, {len(tuned.dense_layers)} layers dense" if tuned.dense_layers else tuned.method
    return lambda: network(tensor).numpy(), note


def sparselab(path: str, inputs: Any, threads: int) -> tuple[Call, str]:
    """An MLP with sparselab's products. Features are the first dimension throughout, so that it need not transpose."""
    import torch
    from sparselab import PaddedCSR, spmm  # pyright: ignore

    from swamp.runtime import state_dict

    torch.set_num_threads(threads)
    tensors = state_dict(path)
    names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    layers = [(PaddedCSR.from_dense(tensors[f"{one}.weight"]), tensors[f"{one}.bias"][:, None]) for one in names]
    tensor = torch.from_numpy(inputs).flatten(1)

    def call() -> Any:
        values = tensor.T.contiguous()
        for number, (weight, bias) in enumerate(layers, 1):
            values = spmm(weight, values).add_(bias)
            values = values.relu_() if number < len(layers) else values
        return values.T.numpy()

    return call, ""


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def _seconds(call: Call, limit: float, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each call, for `limit` seconds; of one call at least."""
    seconds: list[float] = []
    end = time.perf_counter() + limit
    while not seconds or time.perf_counter() < end:
        start = clock()
        call()
        seconds.append(clock() - start)
    return seconds


def replies(runtime: Callable[[str, Any, int], tuple[Call, str]], requests: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The reply to each request."""
    call: Call = lambda: None  # noqa: E731
    for request in map(json.loads, requests):
        if "load" in request:
            call, note = runtime(request["load"], np.load(request["inputs"]), request["threads"])
            np.save(request["outputs"], call())
            yield {"note": note}
        elif "run" in request:
            # Not timed at first: caches are filled by the process that ran before.
            _seconds(call, request["run"] / 3)
            seconds = _seconds(call, request["run"], CLOCKS[request["clock"]])
            yield {"median": statistics.median(seconds), "calls": len(seconds)}
        else:
            before = time.process_time()
            time.sleep(request["idle"])
            yield {"share": (time.process_time() - before) / request["idle"]}


def main() -> None:
    # Libraries print to standard output too: their lines go to standard error.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runtimes = {"deepsparse": deepsparse, "swamp": swamp, "sparselab": sparselab}
    for reply in replies(runtimes[sys.argv[1]], iter(sys.stdin.readline, "")):
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
