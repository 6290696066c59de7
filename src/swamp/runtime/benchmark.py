"""Size and speed of an exported network on this machine, compared with the dense runtimes that are installed."""

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

from swamp.errors import SwampError, first_line, warn
from swamp.runtime.archive import tensor_bytes
from swamp.runtime.dense import DenseNetwork
from swamp.runtime.formats import Call, onnx_call, to_onnx
from swamp.runtime.gpu import in_dtype
from swamp.runtime.kernels import CsrNetwork
from swamp.runtime.network import SparseNetwork
from swamp.runtime.program import BATCH, LAYERS, Program
from swamp.runtime.rewrite import fold_batchnorm

SWAMP = "swamp"
_NOT_FLOAT32 = "dense, not float32"
logging.getLogger("torch.onnx").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Latency:
    """Seconds of a call of one runtime at one batch size, over rounds in which all runtimes are measured in turn."""

    runtime: str
    batch: int
    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    note: str = ""

    @property
    def throughput(self) -> float:
        """Examples per second."""
        return self.batch / self.median


@dataclass(frozen=True)
class NetworkSize:
    """Parameters, bytes and floating-point operations of a network."""

    parameters: int
    active: int
    """Parameters that are not zero."""
    dense_bytes: int
    """Bytes of the state dict in float32."""
    compressed_bytes: int
    """Bytes of the state dict, compressed with zlib."""
    file_bytes: int
    dense_flops: int
    """For one example in linear and convolutional layers; a multiplication and an addition count as two."""
    flops: int
    """The same, of non-zero weights only."""


def measure_size(program: Program, path: Path) -> NetworkSize:
    """Parameters, bytes and FLOPs of a network in a file."""
    tensors = [tensor for tensor in program.tensors.values() if tensor.is_floating_point()]
    data = [tensor_bytes(tensor) for tensor in tensors]
    dense_flops = flops = 0
    for node in program.nodes:
        name = node.args[1].name if node.op in LAYERS else ""
        value = program.values.get(node.name)
        if name in program.tensors and value is not None:
            weight = program.tensors[name]
            # The outputs of a linear layer are its last dimension, those of a convolution the one after the batch.
            places = value.shapes[0][1:-1] if node.op == "linear" else value.shapes[0][2:]
            positions = math.prod(places)
            dense_flops += 2 * weight.numel() * positions
            flops += 2 * int(weight.count_nonzero()) * positions
    return NetworkSize(
        sum(tensor.numel() for tensor in tensors),
        sum(int(tensor.count_nonzero()) for tensor in tensors),
        sum(len(part) for part in data),
        sum(len(zlib.compress(part, 6)) for part in data),
        path.stat().st_size,
        dense_flops,
        flops,
    )


def benchmark(
    program: Program, batches: Sequence[int], runtimes: Sequence[str] = (), seconds: float = 4.0
) -> list[Latency]:
    """Measure the latency of every runtime at each batch size.

    Args:
        program: The network.
        batches: Batch sizes.
        runtimes: Names in RUNTIMES. Default: all that are installed.
        seconds: Seconds for each batch size. All runtimes are measured in turn, so that other load affects all alike.

    Returns:
        One latency for each runtime and batch size.

    Raises:
        SwampError: A runtime does not exist or is not installed, or the network does not take a batch size or random
            inputs.
    """
    chosen = tuple(runtimes) or tuple(name for name, (package, _) in RUNTIMES.items() if find_spec(package))
    for name in chosen:
        if name not in RUNTIMES or not find_spec(RUNTIMES[name][0]):
            raise SwampError(f"there is no runtime {name!r} here. Supported, if installed: {', '.join(RUNTIMES)}.")
    if BATCH not in program.sizes:
        warn("the sizes of the inputs are fixed: one call is measured, as one example.")
        batches = [1]
    latencies: list[Latency] = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        onnx = Path(folder) / "model.onnx"
        if {"onnxruntime", "openvino", "openvino bf16"} & set(chosen):
            to_onnx(program, onnx)
        for batch in batches:
            _require_executable(program, batch)
            calls = {name: RUNTIMES[name][1](program, batch, onnx) for name in chosen}
            latencies += _measured(calls, program.example_inputs(batch), batch, seconds)
    return latencies


def _require_executable(program: Program, batch: int) -> None:
    inputs = program.example_inputs(batch)
    program.check_inputs(inputs)
    try:
        DenseNetwork(program).eval().execute(inputs)
    except Exception as error:
        raise SwampError(
            f"this network cannot be measured with {batch} random inputs ({first_line(error)})."
        ) from error


def _measured(
    calls: Mapping[str, tuple[Call, str]], inputs: Sequence[Tensor], batch: int, seconds: float
) -> list[Latency]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    repeats: dict[str, int] = {}
    for name, (call, _) in calls.items():
        # Long enough for the clock. The minimum of five, because one delayed call would reduce a round to one call.
        repeats[name] = max(1, round(0.01 / min(_seconds(call, inputs, 1) for _ in range(5))))
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < 7 or time.perf_counter() < end:
        for name, (call, _) in calls.items():
            # Not timed: caches are filled by the runtime before, and its threads may still be spinning.
            call(inputs)
            times[name].append(_seconds(call, inputs, repeats[name]))
    latencies: list[Latency] = []
    for name, own in times.items():
        low, _, high = statistics.quantiles(own, n=4)
        latencies.append(Latency(name, batch, statistics.median(own), low, high, calls[name][1]))
    return latencies


def _seconds(call: Call, inputs: Sequence[Tensor], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call(inputs)
    return (time.perf_counter() - start) / repeats


def best_dense(latencies: Sequence[Latency], batch: int) -> Latency | None:
    """The latency of the fastest dense float32 runtime at a batch size."""
    dense = [one for one in latencies if one.batch == batch and one.runtime not in _NOT_DENSE_FLOAT32]
    return min(dense, key=lambda one: one.median, default=None)


# Each function returns a call of the runtime, and a note.


def _torch(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    """Dense in torch, in the faster memory format."""
    inputs = program.example_inputs(batch)
    contiguous = DenseNetwork(fold_batchnorm(program)).eval()
    if not any(tensor.dim() == 4 for tensor in inputs):
        return contiguous.execute, ""
    channels_last: Any = DenseNetwork(fold_batchnorm(program)).eval()
    for name, tensor in list(channels_last.named_buffers()):
        if tensor.dim() == 4:  # Module.to would refuse tensors of five dimensions, such as the shifts of Swin.
            setattr(channels_last, name, tensor.contiguous(memory_format=torch.channels_last))

    def call_channels_last(inputs: Sequence[Tensor]) -> Any:
        images = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
        return channels_last.execute(images)

    calls: dict[str, Call] = {"": contiguous.execute, "channels last": call_channels_last}
    for call in calls.values():
        call(inputs)
    seconds = {note: min(_seconds(call, inputs, 1) for _ in range(5)) for note, call in calls.items()}
    note = min(seconds, key=lambda name: seconds[name])
    return calls[note], note


def _torch_bf16(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    network: Any = DenseNetwork(in_dtype(fold_batchnorm(program), torch.bfloat16)).eval().to(torch.bfloat16)

    def call(inputs: Sequence[Tensor]) -> Any:
        return network.execute([x.to(torch.bfloat16) if x.is_floating_point() else x for x in inputs])

    return call, _NOT_FLOAT32


def _torch_compile(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    compiled: Any = torch.compile(DenseNetwork(fold_batchnorm(program)).eval().execute)  # pyright: ignore
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled(program.example_inputs(batch))
    return compiled, ""


def _torch_csr(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    return CsrNetwork(fold_batchnorm(program)).execute, "sparse linear layers"


def _onnxruntime(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    def configure(options: Any) -> None:
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin after a call slow down the runtime that is measured next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    return onnx_call(str(onnx), configure), ""


@cache
def _openvino_core() -> Any:
    """OpenVINO's Core object, one for the whole process.

    A core installs a signal stack for its thread, and restores the previous one when it is deleted. If two cores are
    deleted in the order in which they were created, the restored stack no longer exists, and the next signal (Ctrl-C,
    the end of a child process) kills the process without a message.
    """
    import openvino  # pyright: ignore

    engine: Any = openvino
    return engine.Core()


def _openvino(program: Program, batch: int, onnx: Path, precision: str = "f32") -> tuple[Call, str]:
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = _openvino_core().read_model(str(onnx))
    shapes = [list(x.shape) for x in program.example_inputs(batch)]
    model.reshape(dict(enumerate(shapes)) if len(shapes) > 1 else shapes[0])
    request = _openvino_core().compile_model(model, "CPU", settings).create_infer_request()
    note = "" if precision == "f32" else _NOT_FLOAT32
    return lambda inputs: request.infer([x.numpy() for x in inputs], share_inputs=True), note


def _openvino_bf16(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    return _openvino(program, batch, onnx, "bf16")


def _swamp(program: Program, batch: int, onnx: Path) -> tuple[Call, str]:
    network = SparseNetwork(program, batch=batch)
    (tuned,) = network.tuned.values()
    note = tuned.method if not tuned.dense_layers else f"dense: {', '.join(tuned.dense_layers)}"
    return lambda inputs: network.execute(inputs, batch), note


RUNTIMES: Mapping[str, tuple[str, Callable[[Program, int, Path], tuple[Call, str]]]] = {
    "torch": ("torch", _torch),
    "torch.compile": ("torch", _torch_compile),
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "openvino": ("openvino", _openvino),
    "torch bf16": ("torch", _torch_bf16),
    "openvino bf16": ("openvino", _openvino_bf16),
    "torch csr": ("torch", _torch_csr),
    SWAMP: ("torch", _swamp),
}
"""Name -> (the package that it needs, the function that makes a call of it)."""
_NOT_DENSE_FLOAT32 = (SWAMP, "torch bf16", "openvino bf16", "torch csr")
