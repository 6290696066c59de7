"""The file of a sparse network: small, exact, and refused if it is damaged."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import swamp
from swamp.datasets import build_network
from swamp.errors import SwampError
from swamp.files import digest, load_tensors, save_tensors
from swamp.runtime.archive import _gaps, _positions, read, save, state_dict
from swamp.runtime.dense import DenseNetwork
from swamp.runtime.rewrite import fold_batchnorm
from swamp.runtime.tracing import bake_mask, trace

from .networks import built, numbers


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 300, bias=False), nn.BatchNorm1d(300), nn.ReLU(), nn.Linear(300, 10))


@pytest.fixture
def model() -> nn.Module:
    return built(network, 0.95)


@pytest.fixture
def file(model, tmp_path):
    path = tmp_path / "export.safetensors"
    save(trace(bake_mask(model), numbers(2, 40)), path)
    return path


def test_what_is_read_is_what_was_written_to_the_last_bit(model, file):
    assert not model.training
    stored = state_dict(file)
    assert set(stored) == set(model.state_dict())
    assert all(torch.equal(stored[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(
            DenseNetwork(fold_batchnorm(read(file)))(numbers(5, 40)), model(numbers(5, 40)), atol=1e-5
        )
    fresh = network()
    fresh.load_state_dict(state_dict(file))


@pytest.mark.slow
@given(st.lists(st.integers(0, 2000), unique=True, max_size=40).map(sorted))
@settings(max_examples=100)
def test_gaps_encode_positions_exactly(positions):
    import numpy as np

    assert _positions(np.frombuffer(_gaps(np.array(positions, np.int64)), np.uint8)).tolist() == positions


@pytest.mark.slow
def test_at_95_percent_a_file_is_a_twelfth_of_the_dense_weights_and_a_twentieth_in_bfloat16(tmp_path):
    model = built(lambda: build_network("resnet-20", (1, 28, 28), 10), 0.95)
    program = trace(bake_mask(model), numbers(2, 1, 28, 28))
    dense = 4 * sum(parameter.numel() for parameter in model.parameters())
    for values, share in ((torch.float32, 12), (torch.bfloat16, 20)):
        save(program, tmp_path / "x", values=values)
        assert dense / (tmp_path / "x").stat().st_size > share
    rounded = read(tmp_path / "x").tensors["conv.weight"]
    kept = model.state_dict()["conv.weight"]
    assert torch.equal(rounded, kept.bfloat16().float())
    with pytest.raises(SwampError, match="float32 or bfloat16"):
        save(program, tmp_path / "x", values=torch.float16)


def test_a_file_that_is_cut_short_altered_or_of_another_version_is_refused(file, tmp_path):
    data = file.read_bytes()
    broken = tmp_path / "broken"
    broken.write_bytes(data[:-100])
    with pytest.raises(SwampError, match="not a complete safetensors file"):
        read(broken)
    tensors, metadata = load_tensors(file)
    tensors["values"][3] += 1
    save_tensors(broken, tensors, metadata)
    with pytest.raises(SwampError, match="does not match its own checksum"):
        read(broken)
    save_tensors(broken, tensors, {**metadata, "format": "swamp-sparse-3"})
    with pytest.raises(SwampError, match="format 'swamp-sparse-3', this one reads up to 'swamp-sparse-2'"):
        read(broken)
    with pytest.raises(SwampError, match="does not exist"):
        swamp.load(tmp_path / "nothing")


def test_a_file_can_name_only_pure_functions_of_tensors(file, tmp_path):
    from swamp.runtime.archive import _compressed, _decompressed

    tensors, metadata = load_tensors(file)
    described = json.loads(_decompressed(tensors["program"], 2**20))
    for target in ("from_file.default", "add_.Tensor", "operator.delitem", "nothing.default", "relu"):
        described["program"]["steps"][0]["target"] = target
        tensors["program"] = _compressed(json.dumps(described).encode())
        save_tensors(tmp_path / "x", tensors, {**metadata, "digest": digest(tensors)})
        with pytest.raises(SwampError, match="asks for the operation"):
            read(tmp_path / "x")


@pytest.mark.slow
def test_loading_in_a_new_process_imports_nothing_of_training(file, model):
    inputs = torch.arange(80.0).reshape(2, 40) / 80
    script = (
        "import sys, torch, swamp; torch.set_num_threads(1)\n"
        f"module = swamp.load({str(file)!r}, batch=2)\n"
        "print(module(torch.arange(80.0).reshape(2, 40) / 80).tolist())\n"
        "rooms = sorted({name.split('.')[1] for name in sys.modules if name.startswith('swamp.')})\n"
        "heavy = ('scipy', 'msgspec', 'matplotlib', 'tyro', 'rich', 'onnx')\n"
        "print(rooms, [name for name in heavy if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    first, second = done.stdout.splitlines()
    with torch.no_grad():
        assert torch.allclose(torch.tensor(json.loads(first)), model(inputs), atol=1e-4)
    assert second == "['arguments', 'batches', 'errors', 'fields', 'files', 'masks', 'model_copy', 'runtime'] []"
