"""swamp transfer: where its settings come from, what it refuses, and that other commands read its runs."""

import json
import re
import shutil

import pytest
from tests.runs.conftest import go, tiny

from swamp.cli.transfer_run import transfer_configuration
from swamp.errors import SwampError

from .command import swamp


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "run"
    go(tiny(), path)
    return path


def test_the_same_task_keeps_the_training_and_another_task_brings_its_own(source):
    same = transfer_configuration(str(source), "digits")
    assert (same.model, same.training, same.plan.method) == ("mlp-16", tiny().training, "imp")
    assert same.plan.schedule().densities == (pytest.approx(0.25, abs=1e-3),)
    other = transfer_configuration(str(source), "mnist1d")
    assert (other.task, other.model, other.recipe) == ("mnist1d", "mlp-16", "mnist1d")
    assert other.training != same.training
    assert other.plan.transfer.source == str(source)


def test_bad_input_is_one_message_and_exit_code_2(source, tmp_path, capsys):
    missing = tmp_path / "none"
    for arguments, message in (
        ([], "give the directory of a finished run"),
        ([source], "give the task to transfer to (--task)"),
        ([missing, "--task", "digits"], "holds no run"),
        ([source, "--task", "digit"], "unknown task 'digit'. Did you mean digits"),
        ([source, "--task", "digits", "--cycle", 7], "has the cycles 0 to 2; there is no cycle 7"),
        ([source, "--task", "digits", "--cycle", 1, "--sparsity", 0.5], "give --cycle or --sparsity, not both"),
        ([source, "--task", "digits", "--sparsity", 0.9], "no cycle of sparsity 0.9. It has: 0, 0.5"),
        ([source, "--task", "digits", "--score", "snip"], "score has no effect: mask and initial weights are those"),
        ([source, "--task", "digits", "--classes", "0-12"], "classes is '0-12'; expected numbers from 0 to 9"),
        ([source, "--task", "digits", "--model", "mlp-8"], "hidden1.weight (16, 64) -> (8, 64); hidden1.bias"),
    ):
        assert swamp("transfer", *arguments, "--out", tmp_path / "run") == 2, arguments
        shown = capsys.readouterr().err
        assert message in " ".join(shown.split()), shown
        assert "Traceback" not in shown
    assert not (tmp_path / "run").exists()


def test_help_has_the_defaults_of_the_transfer_or_none(source, capsys):
    assert swamp("transfer", "--help") == 0
    general = " ".join(capsys.readouterr().out.split())
    assert not re.search(r"\(default: (?!by --sparsity|runs/)", general)
    assert swamp("transfer", source, "--task", "digits", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--sparsity FLOAT Sparsity of the source's cycle to transfer. (default: 0.75)" in shown
    assert re.search(r"--method TEXT [^(]*\(default: imp\)", shown)
    assert re.search(r"--model TEXT [^(]*\(default: mlp-16\)", shown)


def test_help_shows_where_to_begin(capsys):
    assert swamp("transfer", "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: swamp transfer SOURCE [OPTIONS]")
    assert "swamp transfer SOURCE --task TARGET --keep mask" in shown
    assert "--keep weights|mask|sparsity" in shown


def test_keep_needs_a_source(tmp_path, capsys):
    assert swamp("run", "digits-mlp", "--keep", "mask", "--out", tmp_path / "run") == 2
    assert "there is no source to keep it of" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_transfer_is_a_run_that_other_commands_read(source, tmp_path, capsys):
    runs = [tmp_path / keep for keep in ("weights", "mask")]
    for path in runs:
        options = ["--classes", "5-9", "--epochs", 1, "--keep", path.name, "--cycle", 1, "--json", "--quiet"]
        assert swamp("transfer", source, "--task", "digits", *options, "--backend", "sequential", "--out", path) == 0
        done = json.loads(capsys.readouterr().out)
        assert (done["transfer"]["cycle"], done["transfer"]["method"]) == (1, "swamp")
    assert swamp("compare", *runs, "--split", "validation", "--json", "--out", tmp_path / "compared") == 0
    labels = json.loads(capsys.readouterr().out)["labels"]
    assert labels == ["imp, transfer.keep=weights", "imp, transfer.keep=mask"]
    assert swamp("export", runs[0], "--out", tmp_path / "net.swamp", "--json") == 0
    assert swamp("resume", runs[0], "--json", "--quiet") == 0


def test_a_study_can_transfer(source):
    from swamp.recipes import configuration
    from swamp.runs.study import Study

    settings = {"source": str(source), "sparsity": 0.5, "method": "imp"}
    study = Study(recipe="digits-mlp", settings=settings, grid={"keep": ["weights", "mask"], "seed": [0]})
    found = study.configurations(configuration, "here")
    assert [one.plan.transfer.keep for one in found.values()] == ["weights", "mask"]
    assert all(one.plan.schedule().densities == (0.5,) for one in found.values())


def test_an_unfinished_source_is_refused(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    (copy / "summary.json").unlink()
    with pytest.raises(SwampError, match="not finished"):
        transfer_configuration(str(copy), "digits")
