"""How fast an exported network is on this machine, beside the dense runtimes that are installed."""

import logging
import math
import statistics
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.runtime.formats import example, to_onnx
from swamp.runtime.program import LAYERS, Dense, Program
from swamp.runtime.rewrite import folded
from swamp.runtime.runtime import Sparse
from swamp.runtime.sparse import Csr

OURS = "swamp"
_NARROW = "dense, not float32"
Call = Callable[[Sequence[Tensor]], Any]


@dataclass(frozen=True)
class Latency:
    """Of one runtime at one batch size, in seconds a call: the median of rounds that all runtimes took in turns."""

    runtime: str
    batch: int
    median: float
    low: float
    high: float
    """The quartiles."""
    note: str = ""

    @property
    def throughput(self) -> float:
        """Examples a second."""
        return self.batch / self.median


@dataclass(frozen=True)
class Size:
    """What a network weighs and does."""

    parameters: int
    kept: int
    dense_bytes: int
    """Of the state dict, in float32."""
    deflated_bytes: int
    """Of the same, compressed."""
    file_bytes: int
    dense_operations: int
    """Floating point operations for one example in linear and convolutional layers, a product and a sum each."""
    operations: int
    """The same of the surviving weights."""


def size_of(program: Program, path: Path) -> Size:
    """Parameters, bytes and operations of the network in a file."""
    tensors = [tensor for tensor in program.tensors.values() if tensor.is_floating_point()]
    data = [tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]
    full = alive = 0
    for step in program.steps:
        name = step.args[1].name if step.op in LAYERS else ""
        if name in program.tensors and step.shape is not None:
            weight = program.tensors[name]
            # A linear layer's outputs are its last dimension, a convolution's the first after the batch.
            places = step.shape[1:-1] if step.op == "linear" else step.shape[2:]
            positions = math.prod(size or 1 for size in places)
            full += 2 * weight.numel() * positions
            alive += 2 * int(weight.count_nonzero()) * positions
    return Size(
        sum(tensor.numel() for tensor in tensors),
        sum(int(tensor.count_nonzero()) for tensor in tensors),
        sum(len(part) for part in data),
        sum(len(zlib.compress(part, 6)) for part in data),
        path.stat().st_size,
        full,
        alive,
    )


def benchmark(
    program: Program, batches: Sequence[int], runtimes: Sequence[str] = (), seconds: float = 4.0
) -> list[Latency]:
    """Latencies of every runtime (default: all that are installed) at each batch size.

    seconds: for each batch size, shared by all runtimes, whose calls take turns so that the machine's noise hits all
    alike. Raises SwampError for a runtime that does not exist or is not installed.
    """
    chosen = tuple(runtimes) or tuple(name for name, (package, _) in RUNTIMES.items() if find_spec(package))
    for name in chosen:
        if name not in RUNTIMES or not find_spec(RUNTIMES[name][0]):
            raise SwampError(f"there is no runtime {name!r} here; there is {', '.join(RUNTIMES)} where installed.")
    found: list[Latency] = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        onnx = Path(folder) / "model.onnx"
        if {"onnxruntime", "openvino", "openvino bf16"} & set(chosen):
            to_onnx(program, onnx)
        for batch in batches:
            calls = {name: RUNTIMES[name][1](program, batch, onnx) for name in chosen}
            found += _measured(calls, example(program, batch), batch, seconds)
    return found


def _measured(
    calls: Mapping[str, tuple[Call, str]], inputs: Sequence[Tensor], batch: int, seconds: float
) -> list[Latency]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    repeats: dict[str, int] = {}
    for name, (call, _) in calls.items():
        # Long enough for the clock; the least of five, as a stall would leave a single call a round.
        repeats[name] = max(1, round(0.01 / min(_seconds(call, inputs, 1) for _ in range(5))))
    until = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < 7 or time.perf_counter() < until:
        for name, (call, _) in calls.items():
            # Untimed: the caches are those of the runtime before, whose threads may still spin.
            call(inputs)
            times[name].append(_seconds(call, inputs, repeats[name]))
    return [
        Latency(name, batch, statistics.median(own), _quartile(own, 0), _quartile(own, 2), calls[name][1])
        for name, own in times.items()
    ]


def _quartile(values: list[float], which: int) -> float:
    return statistics.quantiles(values, n=4)[which]


def _seconds(call: Call, inputs: Sequence[Tensor], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        call(inputs)
    return (time.perf_counter() - began) / repeats


def best_dense(found: Sequence[Latency], batch: int) -> Latency | None:
    """The fastest dense float32 runtime at a batch size."""
    rivals = [one for one in found if one.batch == batch and one.runtime not in _BESIDE]
    return min(rivals, key=lambda one: one.median, default=None)


def _torch(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    """Dense, in whichever order of memory is faster."""
    inputs = example(program, batch)
    plain = Dense(folded(program)).eval()
    if not any(tensor.dim() == 4 for tensor in inputs):
        return lambda given: plain(*given), ""
    last: Any = Dense(folded(program)).eval()
    last.to(memory_format=torch.channels_last)

    def arrange(given: Sequence[Tensor]) -> Any:
        images = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in given]
        return last(*images)

    ways: dict[str, Call] = {"": lambda given: plain(*given), "channels last": arrange}
    for way in ways.values():
        way(inputs)
    took = {note: min(_seconds(way, inputs, 1) for _ in range(5)) for note, way in ways.items()}
    note = min(took, key=lambda name: took[name])
    return ways[note], note


def _bf16(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    narrow: Any = Dense(folded(program)).eval().to(torch.bfloat16)

    def call(given: Sequence[Tensor]) -> Any:
        given = [x.to(torch.bfloat16) if x.is_floating_point() else x for x in given]
        return narrow(*given)

    return call, _NARROW


def _compile(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    compiled: Any = torch.compile(Dense(folded(program)).eval())  # pyright: ignore
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = example(program, batch)
        compiled(*inputs)
    return lambda given: compiled(*given), ""


def _onnxruntime(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    import onnxruntime  # pyright: ignore

    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin on after a call slow whatever runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def call(given: Sequence[Tensor]) -> Any:
        return session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})

    return call, ""


@cache
def _openvino_core() -> Any:
    """One for the process: each core gives the thread a stack for signals and, at its end, brings back the one before.

    When two end in the order in which they began, what is brought back no longer exists, and the next signal (Ctrl-C,
    a child that ended) kills the process without a word.
    """
    import openvino  # pyright: ignore

    engine: Any = openvino
    return engine.Core()


def _openvino(program: Program, batch: int, onnx: Path, precision: str = "f32") -> tuple[Call, str]:
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = _openvino_core().read_model(str(onnx))
    shapes = [list(x.shape) for x in example(program, batch)]
    model.reshape(dict(enumerate(shapes)) if len(shapes) > 1 else shapes[0])
    request = _openvino_core().compile_model(model, "CPU", settings).create_infer_request()
    note = "" if precision == "f32" else _NARROW
    return lambda given: request.infer([x.numpy() for x in given], share_inputs=True), note


def _openvino_bf16(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    return _openvino(program, batch, onnx, "bf16")


def _csr(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    return Csr(folded(program)), "linear layers alone are sparse"


def _ours(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    module = Sparse(program, batch=batch)
    (tuned,) = module.tuned.values()
    note = tuned.way if not tuned.dense_layers else f"dense: {', '.join(tuned.dense_layers)}"
    return lambda given: module(*given), note


RUNTIMES: Mapping[str, tuple[str, Callable[[Program, int, Path], tuple[Call, str]]]] = {
    "torch": ("torch", _torch),
    "torch.compile": ("torch", _compile),
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "openvino": ("openvino", _openvino),
    "torch bf16": ("torch", _bf16),
    "openvino bf16": ("openvino", _openvino_bf16),
    "torch csr": ("torch", _csr),
    OURS: ("torch", _ours),
}
"""Name -> (the package it needs, what makes a call of it)."""
_BESIDE = (OURS, "torch bf16", "openvino bf16", "torch csr")
"""What is no dense runtime in float32."""
logging.getLogger("torch.onnx").setLevel(logging.ERROR)
