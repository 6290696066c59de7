"""Data options that a task does not read are refused where they are given."""

import pytest

from swamp.cli import main
from swamp.datasets import READ_BY, TASKS, build_problem, unread_options
from swamp.datasets.problem import DataOptions
from swamp.errors import SwampError
from swamp.recipes import configuration
from swamp.runs.study import Study
from swamp.training.rng import Seed

OWN = "def plain(): ...\ndef of_folder(folder): ...\ndef of_options(options, seed): ...\n"


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "ticket", "tune"])
def test_a_forgotten_task_is_refused_by_name_of_the_tasks_that_read_the_option(command, capsys, tmp_path):
    out = tmp_path / "out"
    told = refused(capsys, command, "--folder", tmp_path / "table.csv", "--label", "class", "--out", out)
    assert "--folder has no effect: mnist1d-10k does not read it; tasks that do: csv, csv-number, npz" in told
    assert not out.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--tokenizer", "words"],
        ["--length", "5"],
        ["--columns", "a", "b"],
        ["--label", "x"],
        ["--neutral", "0.5"],
        ["--workers", "2"],
        ["--folder", "/nonexistent"],
    ],
)
def test_each_option_that_the_digits_do_not_read_is_refused(options, capsys, tmp_path):
    told = refused(capsys, "run", "digits-mlp", *options, "--out", tmp_path / "run")
    assert f"{options[0]} has no effect: digits does not read it" in told


def test_a_function_reads_the_options_that_it_has_parameters_for(tmp_path):
    (tmp_path / "mine_read.py").write_text(OWN)
    file = tmp_path / "mine_read.py"
    plain = unread_options(f"{file}:plain")
    assert {"folder", "examples", "tokenizer", "labelled"} <= plain.keys()
    assert plain["folder"] == f"the function {file}:plain has no parameter 'folder'"
    assert unread_options(f"{file}:of_folder").keys() == plain.keys() - {"folder"}
    assert unread_options(f"{file}:of_options") == {}


@pytest.mark.parametrize("task", READ_BY["folder"])
def test_the_tasks_that_are_named_read_the_folder(task):
    with pytest.raises(SwampError, match="/nonexistent/data"):
        build_problem(task, "mlp-8", DataOptions(folder="/nonexistent/data"), Seed(0))


def test_the_tasks_that_are_named_exist():
    assert {task for tasks in READ_BY.values() for task in tasks} <= TASKS.keys()


def test_a_study_refuses_a_data_option_that_none_of_its_tasks_reads():
    settings = {"folder": "table.csv", "epochs": 3}
    with pytest.raises(SwampError, match=r"data\.folder has no effect in any run: digits does not read it"):
        Study(settings=settings, grid={"task": ["digits"]}).configurations(configuration, "st.toml")
    assert len(Study(settings=settings, grid={"task": ["digits", "csv"]}).configurations(configuration, "st")) == 2
