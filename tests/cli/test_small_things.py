"""Single sentences and refusals that a user meets on the command line."""

import ast
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import swamp
from swamp.algorithms.cycle import Divergence
from swamp.cli import main
from swamp.datasets import cache, fashion
from swamp.errors import SwampError, unknown
from swamp.report.figures import SECTIONS

TINY = ("--task", "digits", "--examples", "200", "--epochs", "2", "--method", "imp", "--no-swa", "--cycles", "1")


def ran(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_help_and_version_are_commands_too(capsys):
    assert ran("help") == 0
    assert "swamp run" in capsys.readouterr().out
    assert ran("version") == 0
    assert capsys.readouterr().out == f"{swamp.__version__}\n"
    assert ran("help", "resume") == 0
    assert "swamp resume" in capsys.readouterr().out
    assert ran("help", "rum") == 2
    assert "Did you mean run" in capsys.readouterr().err


def test_the_help_of_figure_names_every_figure(capsys):
    assert ran("figure", "--help") == 0
    text = capsys.readouterr().out
    assert [name for name in SECTIONS if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("out", ["/dev/null/x", "/dev/null/x/y"])
def test_a_directory_below_a_file_is_refused_before_the_data_are_read(out, capsys, monkeypatch):
    monkeypatch.setattr("swamp.runs.execute.prepare", None)
    assert ran("run", "--task", "digits", "--out", out) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"swamp: {out} cannot be a run directory: /dev/null is no directory. Choose another --out."
    )


def commands_with_paths() -> list[tuple[str, str]]:
    """Every suggested command in the source with a value in it."""
    found: list[tuple[str, str]] = []
    for path in sorted(Path(swamp.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            text = ""
            for part in node.values:
                if isinstance(part, ast.Constant):
                    text += str(part.value)
                elif re.search(r"\bswamp (resume|compare|study|export|report|figure|benchmark|run --config) $", text):
                    found.append((path.name, ast.unparse(part.value)))
                    text = ""
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_every_suggested_command_quotes_its_path():
    commands = commands_with_paths()
    assert len(commands) > 12
    names = ("quote(", "shlex.quote(", "run")  # `run` is quoted above its command in runs/ranks.py
    assert [one for one in commands if not one[1].startswith(names)] == []


def test_a_suggested_command_quotes_a_path_with_a_space(tmp_path, capsys):
    run = tmp_path / "my run"
    assert ran("run", *TINY, "--out", run) == 0
    assert f"swamp compare '{run}' OTHER..." in capsys.readouterr().out
    assert ran("resume", run) == 0
    printed = capsys.readouterr()
    assert f"note: the run {run} was finished before: nothing is trained." in printed.err
    with pytest.raises(SwampError, match=f"swamp export '{run}'"):
        swamp.load(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SwampError, match="no run of swamp"):
        swamp.load(tmp_path / "empty")
    for file in [path for path in run.rglob("*") if path.is_file()]:
        with pytest.raises(SwampError) as refused:
            swamp.load(file)
        assert "delete" not in str(refused.value)


def test_training_on_three_examples_warns_once(tmp_path, capsys):
    assert ran("run", *TINY, "--examples", "3", "--out", tmp_path / "run") == 0
    assert capsys.readouterr().err.count("the task has 3 training examples: too few to learn from.") == 1
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 0])
    task = swamp.Task.of(train=(x, y), test=(x, y))
    with pytest.warns(UserWarning, match="3 training examples"):
        swamp.cycles(
            torch.nn.Linear(4, 2),
            task,
            swamp.Plan(method="imp", sparsity=0.5, ticket_epochs=0),
            swamp.Training(epochs=1),
        )
    enough = swamp.Task.of(train=(x.repeat(4, 1), y.repeat(4)), test=(x, y))
    with warnings.catch_warnings(action="error"):
        swamp.cycles(
            torch.nn.Linear(4, 2),
            enough,
            swamp.Plan(method="imp", sparsity=0.5, ticket_epochs=0),
            swamp.Training(epochs=1),
        )


def test_formats_are_listed_when_one_is_misspelt():
    formats = ["sparse", "safetensors", "dense", "csr", "onnx", "pt2"]
    assert str(unknown("format", "onx", formats)) == (
        "unknown format 'onx'. Did you mean onnx? Choose one of: csr, dense, onnx, pt2, safetensors, sparse."
    )


def test_missing_fashion_mnist_names_the_package_of_debian(tmp_path, monkeypatch):
    (tmp_path / "other").touch()
    with pytest.raises(SwampError, match="Debian's package dataset-fashion-mnist"):
        fashion.load_idx(fashion.FASHION_MNIST, str(tmp_path))

    def offline(url, checksum, task):
        raise SwampError("could not download.")

    monkeypatch.setattr(fashion, "download", offline)
    monkeypatch.setattr(cache, "download", offline)
    file = fashion.FASHION_MNIST.files[0]
    source = replace(fashion.FASHION_MNIST, installed=tmp_path / "none")
    with pytest.raises(SwampError, match="On Debian, the package dataset-fashion-mnist has the files"):
        fashion._find(source, "", file)


def test_the_sentence_of_a_diverging_ticket_is_whole(tmp_path, capsys):
    lost = Divergence(None, 0, 0.1, 3, "the loss became nan.", 0.05)
    assert lost.sentence == "The ticket diverged: the loss became nan. It is trained again with learning rate 0.05."
    x, y = torch.randn(40, 4), torch.randint(0, 2, (40,))
    task = swamp.Task.of(train=(x, y), test=(x, y))
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    how = swamp.Training(epochs=4, batch_size=4, lr=1e30)
    with pytest.raises(
        swamp.Diverged, match=r"^the ticket diverged: the (training )?loss became (nan|inf)[^,]* in epoch"
    ):
        swamp.prune(model, task, sparsity=0.5, training=how, on_divergence="stop", ticket_epochs=2)
