"""The short form of `make export-zoo`: networks of torch, of swamp and of transformers."""

import importlib.util
import sys
from pathlib import Path

import pytest

import swamp

sys.path.insert(0, str(Path(__file__).parents[2] / "zoo"))

import export
import loaded
from exportable import NETWORKS

FAST = ("EmbeddingBag classifier",)
SLOW = ("Encoder", "Decoder", "LSTM", "GRU", "U-Net", "BERT", "GPT-2", "Llama", "T5")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_loaded_network_equals_the_exported_one_by_the_chosen_method_and_by_the_kernels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    network = next(one for one in NETWORKS if one.name == name)
    if network.kind == "transformers" and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    monkeypatch.setattr("swamp.runtime.network._TUNING_SECONDS", 0)
    model = export.made(network)
    mask = export.prune_(model, 0.9)
    done = swamp.export(model, tmp_path / "network.safetensors", network.inputs(3), mask, dynamic=network.dynamic)
    pairs = [(inputs, loaded.call(model, inputs)) for inputs in map(network.inputs, export.BATCHES)]
    found = loaded.compare(swamp.load(done.path, batch=2), pairs)
    assert found["difference"] <= export.TOLERANCE
    assert found["kernel_difference"] <= export.TOLERANCE
    assert found["in_kernels"] > 0


def test_the_page_lists_every_network():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "export_zoo.md").read_text()
    assert [network.name for network in NETWORKS if f"| {network.name} |" not in page] == []
