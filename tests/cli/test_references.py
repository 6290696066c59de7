"""--model, --task and --optimizer name functions in files of the user."""

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swamp.cli import main
from swamp.errors import SwampError
from swamp.files import load_tensors
from swamp.references import is_reference, resolve

CODE = """
import torch, swamp
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))

def sized(shape, classes):
    return nn.Linear(shape[0], classes)

def task(seed: swamp.Seed):
    x = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return swamp.Task.of(train=(x[:96], y[:96]), test=(x[96:], y[96:]))

def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.5)

def nothing():
    pass

def needs(width):
    return Net(width)

def fails():
    return torch.zeros(2) @ torch.zeros(3)

def empty():
    return nn.ReLU()

number = 3
"""
FAST = [
    "--epochs",
    "2",
    "--batch-size",
    "16",
    "--sparsity",
    "0.5",
    "--cycles",
    "1",
    "--particles",
    "2",
    "--device",
    "cpu",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    before, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if "mine" in name:
            del sys.modules[name]


def run(*arguments, out="run", code=0):
    if code:
        with pytest.raises(SystemExit) as ended:
            main(["run", *FAST, "--out", str(out), *arguments])
        assert ended.value.code == code
    else:
        main(["run", *FAST, "--out", str(out), *arguments])


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("place", ["mine", "mine.py"])
def test_a_run_of_ones_own_model_task_and_optimizer(folder, capsys, place):
    run("--model", f"{place}:Net", "--task", f"{place}:task", "--optimizer", f"{place}:sgd", "--json")
    assert json.loads(capsys.readouterr().out)["sparsity"] == 0.5
    config = json.loads(Path("run/config.json").read_text())
    assert (config["model"], config["task"]) == (f"{place}:Net", f"{place}:task")
    assert {config["origin"][what]["source"] for what in ("model", "task", "optimizer")} == {
        config["origin"]["model"]["source"]
    }
    assert len(config["origin"]["model"]["source"]) == 16
    assert load_tensors(Path("run/model.safetensors"))[0]["first.weight"].shape == (16, 6)
    main(["analyze", "run", "--only", "masks", "--quiet"])
    main(["export", "run"])
    main(["compare", "run"])


def test_a_network_of_swamp_and_a_sized_function_take_their_sizes_from_the_task(folder):
    run("--task", "mine:task", "--model", "mlp-8", out="a")
    run("--task", "mine:task", "--model", "mine:sized", out="b")
    assert load_tensors(Path("b/model.safetensors"))[0]["weight"].shape == (3, 6)


@pytest.mark.slow
def test_the_seed_decides_the_initial_weights(folder):
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run("--task", "mine:task", "--model", "mine:Net", "--seed", seed, "--ticket-epochs", "0", out=out)
    a, b, c = (load_tensors(Path(f"{out}/ticket.safetensors"))[0] for out in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["first.weight"], c["first.weight"])


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        ("mine:Nett", "mine:task", "model mine:Nett: mine has no 'Nett'. Did you mean Net"),
        ("mine:number", "mine:task", "number in mine is not a function or class"),
        ("mine:Net", "mine:tasks", "task mine:tasks: mine has no 'tasks'. Did you mean task"),
        ("nowhere:Net", "mine:task", "there is no module named 'nowhere'"),
        ("nowhere.py:Net", "mine:task", "there is no file nowhere.py"),
        ("broken.py:Net", "mine:task", "cannot be imported: SyntaxError"),
        ("raising:Net", "mine:task", "raising cannot be imported: ZeroDivisionError: division by zero"),
        ("lacking:Net", "mine:task", "there is no module named 'some_library'"),
        ("mine:nothing", "mine:task", "the function returned nothing, expected a torch.nn.Module"),
        ("mine:needs", "mine:task", "the function needs width; it is called with those"),
        ("mine:fails", "mine:task", "RuntimeError: inconsistent tensor size"),
        ("mine:empty", "mine:task", "ReLU has no parameters"),
        ("mine:Net", "mine:Net", "expected a swamp.Task. End it with: return swamp.Task.of"),
        ("mine:Net", "mine:nothing", "the function returned nothing, expected a swamp.Task"),
        ("mine:", "mine:task", "mine has no ''"),
        (":Net", "mine:task", "model :Net"),
    ],
)
def test_a_wrong_reference_is_one_line_before_any_file_is_written(folder, capsys, model, task, message):
    Path("broken.py").write_text("def Net(:\n")
    Path("raising.py").write_text("1 / 0\n")
    Path("lacking.py").write_text("import some_library\n")
    run("--model", model, "--task", task, code=2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


def stopped_run():
    """A run whose last cycle is missing."""
    run("--task", "mine:task", "--model", "mine:Net")
    shutil.rmtree("run/cycle-01")
    Path("run/summary.json").unlink()


def test_a_resume_warns_of_a_changed_file_and_refuses_other_initial_weights(folder, capsys):
    stopped_run()
    main(["resume", "run"])
    assert "was changed" not in capsys.readouterr().err
    shutil.rmtree("run/cycle-01")
    Path("mine.py").write_text(CODE + "# a comment\n")
    main(["resume", "run"])
    assert "the file of model mine:Net and of task mine:task was changed" in " ".join(capsys.readouterr().err.split())
    shutil.rmtree("run/cycle-01")
    # Of another length: Python would use the bytecode of a file of the same length written in the same second.
    Path("mine.py").write_text(CODE.replace("width: int = 16", "width: int = 8"))
    del sys.modules["mine"]
    with pytest.raises(SystemExit):
        main(["resume", "run"])
    assert "cannot be continued: the file of model mine:Net" in " ".join(capsys.readouterr().err.split())


def test_names_of_other_libraries_and_of_swamp_are_no_references():
    assert not any(map(is_reference, ("hf:bert", "timm:resnet18", "python:Net", "mlp-100", "adamw")))
    assert is_reference("a.b:C")
    with pytest.raises(SwampError, match=r"has no 'Linaer'. Did you mean"):
        resolve("torch.nn:Linaer", "model")


@settings(max_examples=100, deadline=None)
@given(st.from_regex(r"[a-z./\\ \x00-]{0,6}(\.py)?:[a-zA-Z_. -]{0,6}", fullmatch=True))
def test_any_text_is_an_object_or_refused(reference):
    with suppress(SwampError):
        assert callable(resolve(reference, "model"))
