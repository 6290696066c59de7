"""swamp export and swamp benchmark, on a tiny run."""

import importlib.util
import io
import json
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import swamp as library
from swamp.cli.export import latency_table
from swamp.console import plain_console
from swamp.files import digest, load_tensors
from swamp.runs.config import RunConfig
from swamp.runs.execute import prepare
from swamp.runtime.benchmark import Latency

from .command import swamp

TINY = ["digits-mlp", "--epochs", "1", "--model", "mlp-64", "--sparsity", "0.5", "--barrier-threshold", "1"]
TINY += ["--examples", "320", "--device", "cpu", "--backend", "sequential", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    assert swamp("run", *TINY, "--out", folder) == 0
    return folder


@pytest.mark.slow
def test_an_exported_run_has_the_recorded_accuracy(run, capsys, tmp_path):
    before = digest(load_tensors(run / "model.safetensors")[0])
    assert swamp("export", run, "--json") == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert exported["difference"] < 1e-5
    assert exported["file_bytes"] == (run / "export.safetensors").stat().st_size < exported["dense_bytes"]
    assert digest(load_tensors(run / "model.safetensors")[0]) == before
    out = tmp_path / "bench.json"
    arguments = ["--batch", "1,4", "--runtimes", "torch", "swamp", "--seconds", "0.05", "-o", out]
    assert swamp("benchmark", run / "export.safetensors", *arguments) == 0
    printed = capsys.readouterr().out
    assert "test, from the file: accuracy" in printed
    found = json.loads(out.read_text())
    assert found["accuracy"]["file"]["accuracy"] == pytest.approx(found["accuracy"]["run"]["accuracy"], abs=1e-3)
    assert [(line["runtime"], line["batch"]) for line in found["latencies"]] == [
        ("torch", 1), ("swamp", 1), ("torch", 4), ("swamp", 4)
    ]  # fmt: skip


@pytest.mark.slow
def test_a_benchmark_measures_a_regression_as_its_run_did(capsys, tmp_path):
    arguments = ["--epochs", "3", "--sparsity", "0.5", "--device", "cpu", "--backend", "sequential", "--quiet"]
    assert swamp("run", "diabetes-mlp", *arguments, "--barrier-threshold", "1e9", "--out", tmp_path / "run") == 0
    assert swamp("export", tmp_path / "run") == 0
    capsys.readouterr()
    arguments = ["--batch", "4", "--runtimes", "torch", "--seconds", "0.05", "--json"]
    assert swamp("benchmark", tmp_path / "run" / "export.safetensors", *arguments) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    assert accuracy["file"] == pytest.approx(accuracy["run"], rel=1e-4)
    assert "rmse" in accuracy["file"]


@pytest.mark.slow
def test_a_benchmark_warns_where_its_task_calls_the_network_in_another_way(run, capsys, tmp_path, monkeypatch):
    assert swamp("export", run, "-o", tmp_path / "x.safetensors") == 0
    narrow = prepare(RunConfig.load(run / "config.json"))[0].task
    monkeypatch.setattr(
        "swamp.cli.export.prepare",
        lambda config: (SimpleNamespace(task=replace(narrow, forward=lambda model, x: model(x[..., :7]))), None),
    )
    arguments = ["--batch", "4", "--runtimes", "torch", "--seconds", "0.05"]
    assert swamp("benchmark", tmp_path / "x.safetensors", *arguments) == 0
    printed = capsys.readouterr()
    assert "the metrics from the file were not measured: input" in printed.err
    assert "from the file" not in printed.out


@pytest.mark.slow
def test_other_formats_cycles_and_values(run, capsys, tmp_path):
    assert swamp("export", run, "--to", "dense", "--cycle", 0, "-o", tmp_path / "dense") == 0
    assert "sparsity 0.0000" in capsys.readouterr().out
    assert swamp("export", run, "--to", "safetensors", "--values", "bfloat16", "-o", tmp_path / "narrow") == 0
    assert swamp("export", run, "-o", tmp_path / "wide") == 0
    assert (tmp_path / "narrow").stat().st_size < (tmp_path / "wide").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onxx"], "unknown format 'onxx'. Did you mean onnx"),
        (["--to", "dense", "--values", "bfloat16"], "is only available for the sparse format"),
        (["--cycle", "7"], "there is no cycle 7"),
        (["--to", "dense", "--out", "{run}/model.safetensors"], "model.safetensors is a file of the run"),
        (["--out", "{run}/../run/config.json"], "config.json is a file of the run"),
    ],
)
def test_unsupported_options_are_refused(run, arguments, message, capsys):
    arguments = [one.format(run=run) for one in arguments]
    assert swamp("export", run, *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_benchmark_of_another_file_is_refused(run, capsys, tmp_path):
    assert swamp("benchmark", run / "model.safetensors") == 2
    assert "is not an exported network but a plain state dict" in capsys.readouterr().err
    assert swamp("benchmark", run / "export.safetensors", "--batch", "1,x") == 2
    assert "is not a list of batch sizes" in capsys.readouterr().err
    assert swamp("benchmark", run / "export.safetensors", "--out", run) == 2
    assert "is a folder. Give the path of a file." in capsys.readouterr().err
    (tmp_path / "config.json").touch()
    assert swamp("benchmark", tmp_path) == 2
    assert "has no exported network. Write one with: swamp export" in capsys.readouterr().err


def test_the_table_of_a_benchmark_fits_80_columns_and_each_row_is_one_line():
    notes = ["dense, not float32", "sparse linear layers", "kernels, blocks of 128", "channels last", ""]
    runtimes = ["openvino bf16", "torch csr", "swamp", "torch.compile", "onnxruntime"]
    slow = [Latency(name, 4096, 12.345678, 12.0, 13.5, note) for name, note in zip(runtimes, notes, strict=True)]
    fast = [Latency(name, 1024, 1e-4, 1e-4, 2e-4, note) for name, note in zip(runtimes, notes, strict=True)]
    console = plain_console(file=io.StringIO(), width=200)
    console.print(latency_table([*slow, *fast]))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 11
    assert max(map(len, lines)) <= 80
    assert all(note in line for note, line in zip([*notes, *notes], lines[1:], strict=True))
    long = [Latency("swamp", 1, 0.1, 0.1, 0.1, "dense: features.0.conv.1, features.1.conv.2, features.3.conv.1")]
    console = plain_console(file=io.StringIO(), width=80)
    console.print(latency_table([*slow, *long]))
    assert max(map(len, console.file.getvalue().splitlines())) <= 80


@pytest.mark.slow
def test_the_server_answers_with_the_outputs_of_the_network(run, tmp_path):
    path = tmp_path / "served"
    assert swamp("export", run, "-o", path) == 0
    spec = importlib.util.spec_from_file_location("serve", Path(__file__).parents[2] / "examples" / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    module = library.load(path, batch=4)
    running = serve.server(module, (1, 8, 8), 0)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    inputs = torch.arange(192.0).reshape(3, 1, 8, 8) / 192
    url = f"http://127.0.0.1:{running.server_address[1]}"
    try:
        with urllib.request.urlopen(url, json.dumps({"inputs": inputs.tolist()}).encode()) as answer:
            found = torch.tensor(json.load(answer)["outputs"])
        assert torch.allclose(found, module(inputs), atol=1e-5)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(url, b'{"inputs": [1]}')
        rate, _ = serve.load(running.server_address[1], (1, 8, 8), 0.1, clients=2, rows=2)
        assert rate > 0
    finally:
        running.shutdown()
        running.server_close()


@pytest.mark.slow
def test_the_network_of_an_ensemble_is_named_as_its_first_member(capsys, tmp_path):
    options = ["--method", "imp-ensemble", "--particles", 2, "--cycles", 1]
    assert swamp("run", *TINY, *options, "--out", tmp_path / "run") == 0
    assert "model.safetensors (the first of 2 members)" in " ".join(capsys.readouterr().out.split())
    assert swamp("export", tmp_path / "run") == 0
    assert "an ensemble of 2 members: this network is its first member" in " ".join(capsys.readouterr().err.split())
    with pytest.warns(UserWarning, match="metrics are those of all members together"):
        library.load_run(tmp_path / "run")
