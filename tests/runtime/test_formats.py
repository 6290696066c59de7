"""Formats of exported networks, and the benchmark."""

import copy
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

import swamp
from swamp.errors import SwampError
from swamp.files import load_tensors
from swamp.runtime import formats
from swamp.runtime.archive import save
from swamp.runtime.benchmark import benchmark, best_dense, measure_size
from swamp.runtime.formats import WRITERS, read_csr
from swamp.runtime.tracing import bake_mask, trace

from .networks import built, images, numbers


@pytest.fixture
def model():
    return built(images, 0.8)


@pytest.fixture
def program(model):
    return trace(bake_mask(model), numbers(2, 1, 8, 8))


def load_dense(path, model):
    fresh = images()
    fresh.load_state_dict(load_tensors(path)[0])
    return fresh.eval()


def load_csr(path, model):
    stored = read_csr(path)
    assert stored["6.weight"].layout == torch.sparse_csr
    dense = {name: x.to_dense() if x.layout == torch.sparse_csr else x for name, x in stored.items()}
    fresh = copy.deepcopy(model)
    fresh.load_state_dict({name: x.reshape(model.state_dict()[name].shape) for name, x in dense.items()})
    return fresh


def load_onnx(path, model):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


LOADERS = {
    "sparse": lambda path, model: swamp.load(path, batch=3),
    "dense": load_dense,
    "csr": load_csr,
    "onnx": load_onnx,
    "pt2": lambda path, model: torch.export.load(path).module(),
}


# torch 2.9 warns inside torch.export.load.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.slow_cases("onnx")
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_computes_the_same_outputs(name, model, program, tmp_path):
    if name == "onnx":
        pytest.importorskip("onnxscript")
    write, ending = WRITERS[name]
    path = tmp_path / f"file{ending}"
    write(program, path)
    inputs = numbers(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(LOADERS[name](path, model)(inputs), model(inputs), atol=1e-4)


class _Several(torch.nn.Module):
    """Outputs of several types, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.a(x)
        return y, y.masked_fill(y < 0, -torch.inf), y > 0, y.argmax(1), y


@pytest.mark.slow
def test_all_outputs_of_an_onnx_graph_are_compared(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    program = trace(built(_Several, 0.5), numbers(2, 4))
    formats.to_onnx(program, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").exists()
    call = formats.onnx_call
    for place, change in ((1, 1e-3), (2, True), (3, 1)):

        def changed(data, place=place, change=change):
            def run(inputs):
                found = call(data)(inputs)
                found[place] = found[place] ^ change if change is True else found[place] + change
                return found

            return run

        monkeypatch.setattr(formats, "onnx_call", changed)
        with pytest.raises(SwampError, match=f"ONNX graph differ from those of torch by .* in '{place}'; export to"):
            formats.to_onnx(program, tmp_path / "y.onnx")
    assert not (tmp_path / "y.onnx").exists()


@pytest.mark.slow
def test_a_network_that_onnx_runtime_cannot_execute_is_refused(tmp_path):
    pytest.importorskip("onnxscript")
    program = trace(built(lambda: torch.nn.Linear(4, 2).bfloat16(), 0.5), numbers(2, 4).bfloat16())
    with pytest.raises(SwampError, match=r"cannot be written as ONNX .*; export to another format"):
        formats.to_onnx(program, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


class _InFloat32(torch.nn.Module):
    """Names float32 between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).double().float().softmax(-1, dtype=torch.float32))


def test_bfloat16_is_measured_for_a_network_that_names_float32():
    (latency,) = benchmark(trace(built(_InFloat32, 0.5), numbers(2, 4)), [2], ["torch bf16"], seconds=0.01)
    assert latency.note == "dense, not float32"


@pytest.mark.slow
def test_a_benchmark_measures_each_runtime_at_each_batch_size(program):
    openvino = ("openvino bf16",) if find_spec("openvino") else ()
    runtimes = ("torch", "torch bf16", *openvino, "swamp")
    latencies = benchmark(program, (1, 4), runtimes, seconds=0.05)
    assert [(one.runtime, one.batch) for one in latencies] == [(name, batch) for batch in (1, 4) for name in runtimes]
    assert all(0 < one.low <= one.median <= one.high for one in latencies)
    fastest = best_dense(latencies, 4)
    assert fastest is not None
    assert fastest.runtime == "torch"


def test_an_unknown_runtime_is_refused(program):
    with pytest.raises(SwampError, match="no runtime 'tflite'"):
        benchmark(program, (1,), ("tflite",))


def test_a_benchmark_counts_one_example_where_the_batch_is_fixed_and_refuses_other_batches(program):
    whole = trace(built(lambda: torch.nn.Linear(4, 2), 0.5), numbers(3, 4), dynamic={})
    with pytest.warns(UserWarning, match="the sizes of the inputs are fixed: one call is measured, as one example"):
        (latency,) = benchmark(whole, (1, 32), ("torch",), seconds=0.01)
    assert latency.batch == 1
    few = replace(program, sizes={"batch": replace(program.sizes["batch"], maximum=9)})
    with pytest.raises(SwampError, match="at most 9, got 32"):
        benchmark(few, (32,), ("torch",), seconds=0.01)


def test_flops_count_two_for_each_weight_and_position(program, tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    size = measure_size(program, tmp_path / "x")
    assert size.file_bytes == 5
    assert size.dense_flops == 2 * (8 * 9 * 64 + 5 * 128)
    nnz = {name: int(program.tensors[name].count_nonzero()) for name in ("0.weight", "6.weight")}
    assert size.flops == 2 * (nnz["0.weight"] * 64 + nnz["6.weight"])


_SIGNALLED = """
import os, signal, sys
from swamp.runtime.benchmark import benchmark
from swamp.runtime.archive import read
signal.signal(signal.SIGINT, lambda *_: print("received", flush=True))
benchmark(read(sys.argv[1]), (1, 4), ("openvino",), seconds=0.01)
os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.slow
def test_a_signal_after_a_benchmark_is_handled(program, tmp_path):
    """OpenVINO replaces the signal stack, and several cores can leave one that no longer exists."""
    pytest.importorskip("openvino")
    save(program, tmp_path / "x.safetensors")
    command = [sys.executable, "-c", _SIGNALLED, str(tmp_path / "x.safetensors")]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout) == (0, "received\n"), child.stderr


class _WithTable(torch.nn.Module):
    """An image network with a buffer of five dimensions, as Swin's attention masks are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.register_buffer("table", torch.ones(1, 1, 2, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)[:, None] + self.table


def test_torch_is_measured_where_a_buffer_has_five_dimensions():
    (latency,) = benchmark(trace(_WithTable(), torch.ones(2, 1, 5, 5)), [2], ["torch"], seconds=0.01)
    assert latency.runtime == "torch"
