"""Exported networks as modules: results, refusals, compiled kernels and their cache, formats, and the benchmark."""

import copy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from swamp.errors import MaskError, SwampError
from swamp.files import digest, load_tensors
from swamp.masks import Mask
from swamp.runtime import SparseNetwork, bake_mask, fold_batchnorm, kernels, save, trace
from swamp.runtime.benchmark import benchmark, best_dense, measure_size
from swamp.runtime.formats import WRITERS, read_csr

from .networks import built, numbers


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8 * 16, 5),
    )


@pytest.fixture
def model() -> nn.Module:
    return built(images, 0.8)


@pytest.fixture
def program(model):
    return trace(bake_mask(model), numbers(2, 1, 8, 8))


def test_outputs_equal_those_of_the_network_at_any_batch_size(model, program):
    module = SparseNetwork(program, batch=(1, 16))
    assert sorted(module.tuned) == [1, 16]
    assert all({"dense", "kernels, blocks of 1"} <= set(tuned.seconds) for tuned in module.tuned.values())
    assert module.fallback_ops == []
    with torch.no_grad():
        for size in (1, 2, 16, 40):
            assert torch.allclose(module(numbers(size, 1, 8, 8)), model(numbers(size, 1, 8, 8)), atol=1e-4)


def test_baking_a_mask_changes_a_copy_and_not_the_model():
    model = built(images, 0).train()
    mask = Mask({"0.weight": torch.rand(8, 1, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5})
    before, modes = digest(model.state_dict()), [module.training for module in model.modules()]
    final = bake_mask(model, mask)
    mask.require_zeros(final.state_dict())
    found = SparseNetwork(trace(final, numbers(2, 1, 8, 8)), batch=3)(numbers(3, 1, 8, 8))
    assert digest(model.state_dict()) == before
    assert [module.training for module in model.modules()] == modes
    with torch.no_grad():
        assert torch.allclose(found, final(numbers(3, 1, 8, 8)), atol=1e-4)
    fold_batchnorm(trace(final, numbers(2, 1, 8, 8)))
    assert digest(final.state_dict()) != before


def test_a_model_without_zeros_is_refused_and_zeros_outside_the_mask_are_reported(model):
    with pytest.raises(MaskError, match="has no pruned weights"):
        bake_mask(nn.Linear(3, 3))
    with pytest.raises(MaskError, match="does not have"):
        bake_mask(model, Mask({"nothing": torch.ones(2, dtype=torch.bool)}))
    with pytest.warns(UserWarning, match=r"some weights of 6\.weight are zero although the mask keeps them"):
        bake_mask(model, Mask({"6.weight": torch.ones(5, 128, dtype=torch.bool)}))


def test_inputs_of_another_shape_dtype_or_number_are_refused(program):
    module = SparseNetwork(program, batch=2)
    for wrong in (numbers(2, 1, 8, 9), numbers(2, 8, 8), numbers(2, 1, 8, 8).double(), "text"):
        with pytest.raises(SwampError, match=r"takes|must be a tensor"):
            module(wrong)
    with pytest.raises(SwampError, match="takes 1 inputs, got 2"):
        module(numbers(2, 1, 8, 8), numbers(2, 1, 8, 8))
    with pytest.raises(SwampError, match="computes no gradients"):
        module(numbers(2, 1, 8, 8).requires_grad_())
    with pytest.raises(SwampError, match="1 or more"):
        SparseNetwork(program, batch=0)


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).sort(1).values.cumsum(1))


class Deciding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_operators_that_the_kernels_do_not_support_run_in_torch_and_are_listed():
    model = built(Sorted, 0.5)
    module = SparseNetwork(trace(model, numbers(2, 4)), batch=2)
    assert module.fallback_ops == ["the model: sort.default", "the model: cumsum.default"]
    with torch.no_grad():
        assert torch.allclose(module(numbers(7, 4)), model(numbers(7, 4)), atol=1e-5)
    with pytest.raises(SwampError, match=r"torch\.export cannot follow Deciding"):
        trace(Deciding(), numbers(2, 4))
    with pytest.raises(SwampError, match="a size of 2 or more"):
        trace(model, numbers(1, 4))


def test_without_a_compiler_a_warning_is_issued_and_torch_executes(model, program, monkeypatch):
    monkeypatch.setenv("CC", "none")
    kernels.kernel_library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no C compiler"):
            module = SparseNetwork(program, batch=2)
    finally:
        kernels.kernel_library.cache_clear()
    assert set(module.tuned[2].seconds) == {"dense", "csr"}
    with torch.no_grad():
        assert torch.allclose(module(numbers(4, 1, 8, 8)), model(numbers(4, 1, 8, 8)), atol=1e-5)


@pytest.mark.slow
def test_kernels_are_compiled_once_for_a_machine_and_again_for_another(tmp_path, monkeypatch):
    monkeypatch.setenv("SWAMP_CACHE", str(tmp_path))
    built_files = []
    for flags in (b"this", b"this", b"another"):
        monkeypatch.setattr(kernels, "_processor", lambda flags=flags: flags)
        kernels.kernel_library.cache_clear()
        assert kernels.kernel_library().swamp_simd_width() in (4, 8, 16)
        built_files.append(len(list(tmp_path.rglob("*.so"))))
    assert built_files == [1, 1, 2]
    # A damaged file is compiled again. (unlink first: the old file may still be mapped.)
    for path in tmp_path.rglob("*.so"):
        path.unlink()
        path.write_bytes(b"broken")
    kernels.kernel_library.cache_clear()
    assert kernels.kernel_library().swamp_simd_width() in (4, 8, 16)
    kernels.kernel_library.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a compiler")
def test_kernels_compile_without_warnings(tmp_path):
    source = Path(kernels.SOURCE)
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    done = subprocess.run(
        ["cc", str(source), "-o", str(tmp_path / "k.so"), *flags, "-lm"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow_cases("onnx")
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_computes_the_same_outputs(name, model, program, tmp_path):
    if name == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    write, ending = WRITERS[name]
    path = tmp_path / f"file{ending}"
    write(program, path)
    inputs = numbers(3, 1, 8, 8)
    with torch.no_grad():
        want = model(inputs)
    if name == "dense":
        fresh = images()
        fresh.load_state_dict(load_tensors(path)[0])
        found = fresh.eval()(inputs)
    elif name == "csr":
        stored = read_csr(path)
        assert stored["6.weight"].layout == torch.sparse_csr
        fresh = copy.deepcopy(model)
        fresh.load_state_dict(
            {
                key: (value.to_dense() if value.layout == torch.sparse_csr else value).reshape(
                    model.state_dict()[key].shape
                )
                for key, value in stored.items()
            }
        )
        found = fresh(inputs)
    elif name == "pt2":
        found = torch.export.load(path).module()(inputs)
    elif name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])
    else:
        import swamp

        found = swamp.load(path, batch=3)(inputs)
    assert torch.allclose(found, want, atol=1e-4)


@pytest.mark.slow
def test_a_benchmark_measures_each_runtime_at_each_batch_size(program, tmp_path):
    narrow = ("openvino bf16",) if find_spec("openvino") else ()
    found = benchmark(program, (1, 4), ("torch", "torch bf16", *narrow, "swamp"), seconds=0.05)
    assert [(one.runtime, one.batch) for one in found] == [
        (name, batch) for batch in (1, 4) for name in ("torch", "torch bf16", *narrow, "swamp")
    ]
    assert all(0 < one.low <= one.median <= one.high for one in found)
    rival = best_dense(found, 4)
    assert rival is not None
    assert rival.runtime == "torch"
    with pytest.raises(SwampError, match="no runtime 'tflite'"):
        benchmark(program, (1,), ("tflite",))
    (tmp_path / "x").write_bytes(b"12345")
    size = measure_size(program, tmp_path / "x")
    assert size.file_bytes == 5
    assert size.dense_flops == 2 * (8 * 9 * 64 + 5 * 128)
    kept = int(program.tensors["0.weight"].count_nonzero()) * 64 + int(program.tensors["6.weight"].count_nonzero())
    assert size.flops == 2 * kept


_SIGNALLED = """
import os, signal, sys
from swamp.runtime.benchmark import benchmark
from swamp.runtime import read
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


def test_threads_can_call_a_network_at_the_same_time(model, program):
    from concurrent.futures import ThreadPoolExecutor

    module = SparseNetwork(program, batch=4)
    inputs = [numbers(4, 1, 8, 8, seed=seed) for seed in range(20)]
    with torch.no_grad():
        want = [model(one) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(module, inputs), want, strict=True):
            assert torch.allclose(found, expected, atol=1e-4)
