"""Exported networks on a device: most is checked on the CPU, one test needs a GPU."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from swamp.errors import SwampError
from swamp.masks import Mask, Scope, prune_mask
from swamp.runtime import gpu, load
from swamp.runtime.archive import save
from swamp.runtime.gpu import GpuNetwork
from swamp.runtime.tracing import bake_mask, trace

CPU = torch.device("cpu")


@pytest.fixture
def network():
    """The first layer has the 2:4 pattern, the second does not."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    mask = Mask.ones(model, Scope(exclude=("2.*",)))
    mask = prune_mask(
        mask, {n: p.detach().abs() for n, p in model.named_parameters() if n in mask}, 2048, structure="2:4"
    )
    model = bake_mask(model, mask)
    inputs = torch.randn(8, 64, generator=generator)
    return trace(model, inputs[:2]), model, inputs


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-2)])
def test_inputs_and_outputs_have_the_dtypes_of_the_network(network, dtype, tolerance):
    program, model, inputs = network
    module = GpuNetwork(program, CPU, dtype)
    outputs = module(inputs)
    assert outputs.dtype == torch.float32
    assert torch.allclose(outputs, model(inputs), atol=tolerance)
    # Only the layer with the pattern is timed. The CPU has no sparse product, and the reason of torch is kept.
    assert list(module.layers) == ["0"]
    assert not module.layers["0"].uses_sparse
    assert "GPU" in module.layers["0"].unsupported_reason or "cuda" in module.layers["0"].unsupported_reason.lower()


class Nested(nn.Module):
    """Named outputs, nested."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x)
        return OrderedDict(logits=y, hidden=[y, x], places=y.argmax(1))


def test_named_and_nested_outputs_have_the_dtypes_of_the_network():
    found = GpuNetwork(trace(Nested(), torch.ones(2, 4)), CPU, torch.bfloat16)(torch.ones(3, 4))
    assert [found.logits.dtype, *(one.dtype for one in found.hidden)] == 3 * [torch.float32]
    assert found.places.dtype == torch.int64


@pytest.mark.parametrize(("times", "chosen"), [((2.0, 1.0), True), ((1.0, 2.0), False)])
def test_the_faster_product_is_kept(network, monkeypatch, times, chosen):
    program, model, inputs = network
    measured = iter(times)
    monkeypatch.setattr(gpu, "median_seconds", lambda call, device: (call(), next(measured))[1])
    monkeypatch.setattr(gpu, "to_sparse_semi_structured", lambda weight: weight * 2)
    module = GpuNetwork(program, CPU, torch.float32)
    assert module.layers["0"] == gpu.LayerTiming(*times)
    with torch.no_grad():
        model[0].weight.mul_(2 if chosen else 1)
    assert torch.allclose(module(inputs), model(inputs), atol=1e-6)


def test_the_2_4_pattern_is_recognised():
    assert gpu.is_two_of_four(torch.tensor([[1.0, 0, 0, 1, 0, 2, 3, 0]]))
    assert not gpu.is_two_of_four(torch.tensor([[1.0, 0, 1, 1, 0, 0, 0, 0]]))
    assert not gpu.is_two_of_four(torch.ones(2, 3))
    assert not gpu.is_two_of_four(torch.zeros(4))
    assert not gpu.is_two_of_four(None)


def test_wrong_inputs_dtypes_and_devices_are_refused(network, tmp_path):
    program, _, inputs = network
    module = GpuNetwork(program, CPU, torch.float32)
    with pytest.raises(SwampError, match=r"takes 1 arguments \(input\), got 2"):
        module(inputs, inputs)
    with pytest.raises(SwampError, match="takes \\(batch, 64\\)"):
        module(inputs[:, :3])
    with pytest.raises(SwampError, match="computes no gradients"):
        module(inputs.clone().requires_grad_())
    save(program, tmp_path / "x.safetensors")
    with pytest.raises(SwampError, match="on CPU exported networks compute in float32"):
        load(tmp_path / "x.safetensors", dtype=torch.bfloat16)
    for batch in (0, (), (1, -1)):
        with pytest.raises(SwampError, match="batch sizes must be 1 or more"):
            load(tmp_path / "x.safetensors", device="meta", batch=batch)
    for name in ("nowhere", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(SwampError, match=f"the device '{name}' cannot be used"):
            load(tmp_path / "x.safetensors", device=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(network, tmp_path):
    program, model, inputs = network
    save(program, tmp_path / "x.safetensors")
    module = load(tmp_path / "x.safetensors", device="cuda", dtype=torch.bfloat16, batch=8)
    assert module.layers["0"].sparse is not None, module.layers["0"].unsupported_reason
    assert torch.allclose(module(inputs).cpu(), model(inputs), atol=5e-2)
