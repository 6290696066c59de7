"""Runs that differ in more than their methods: refused for other test data, else told in a note."""

import json

import pytest

from swamp.errors import SwampError
from swamp.report.comparison import compare
from swamp.report.page import render
from swamp.report.report_data import ReportData
from swamp.report.run_records import read_run

from .runs import cycle, write_run


def written(folder, name, method="imp", *, data=None, splits=None, **config):
    """A run of two cycles; splits: what a run from Python records of its data."""
    if data is not None:
        config["data"] = data
    if splits is not None:
        config["origin"] = {"task": {**splits, "loss": "cross_entropy"}, "model": {"parameters": {"w": [3, 2]}}}
    return write_run(folder / name, [cycle(0, 1.0, 0.9), cycle(1, 0.5, 0.8)], method=method, **config)


def compared(*paths, **options):
    return compare([read_run(path) for path in paths], **options)


def part(examples, digest, kind="TensorData"):
    return {"type": kind, "examples": examples, "digest": digest}


def test_what_differs_beside_the_method_is_a_note_in_json_and_on_the_page(tmp_path):
    imp = written(tmp_path, "imp", data={"examples": 64, "folder": "one.csv"}, training={"lr": 0.02})
    one = written(tmp_path, "one", "swamp", data={"examples": 200, "folder": "two.csv"}, training={"lr": 0.1})
    found = compared(imp, one)
    told = "training.lr is 0.02 (imp), 0.1 (swamp)"
    assert found.notes == (
        f"The runs differ not only in their methods: {told}; data.folder is one.csv (imp), two.csv (swamp); "
        "data.examples is 64 (imp), 200 (swamp).",
    )
    assert told in json.dumps(found.to_json())
    assert told in render(ReportData.read([imp, one]))


def test_methods_at_equal_settings_have_no_note(tmp_path):
    imp = written(tmp_path, "imp", densities=[1, 0.5], device="cpu", threads=1)
    swamp = written(tmp_path, "swamp", "swamp", sparsity=0.5, device="cuda", threads=2, recipe="digits")
    assert compared(imp, swamp).notes == ()


def test_a_setting_that_each_label_states_is_not_repeated(tmp_path):
    rates = [0.1, 0.2]
    runs = [written(tmp_path, f"{m}{r}", m, training={"lr": r}) for m in ("imp", "swamp") for r in rates]
    assert compared(*runs).notes == ()
    assert "training.lr is 0.1 (imp), 0.2 (swamp)." in compared(runs[0], runs[3]).notes[0]


@pytest.mark.parametrize(
    ("name", "split", "one", "two"),
    [
        ("data.classes", "test", {"classes": ""}, {"classes": "5-9"}),
        ("data.text.label", "test", {"text": {"label": "a"}}, {"text": {"label": "b"}}),
        ("data.text.columns", "test", {"text": {"columns": ["a"]}}, {"text": {"columns": ["b"]}}),
        ("data.validation", "validation", {"validation": 0.1}, {"validation": 0.2}),
    ],
)
def test_runs_evaluated_on_other_data_are_refused(name, split, one, two, tmp_path):
    runs = written(tmp_path, "a", data=one), written(tmp_path, "b", "swamp", data=two)
    with pytest.raises(SwampError, match=rf"different {split} data cannot share a table: {name} is .*/a\), .*/b\)"):
        compared(*runs, split=split)


def test_a_label_that_one_run_leaves_to_the_data_is_not_refused(tmp_path):
    runs = (
        written(tmp_path, "a", data={"text": {"label": ""}}),
        written(tmp_path, "b", "swamp", data={"text": {"label": "y"}}),
    )
    assert "data.text.label is empty (imp), y (swamp)" in compared(*runs).notes[0]
    other = written(tmp_path, "c", data={"validation": 0.1}), written(tmp_path, "d", "swamp", data={"validation": 0.2})
    assert "data.validation is 0.1 (imp), 0.2 (swamp)" in compared(*other).notes[0]


def test_python_runs_of_one_seed_need_the_same_test_data(tmp_path):
    def run(name, seed, test, train=None):
        splits = {"test": test, "train": train or part(100, "aa")}
        return written(tmp_path, name, "swamp" if name[0] == "s" else "imp", seed=seed, splits=splits)

    first = run("imp-0", 0, part(50, "x0"))
    by_seed = run("imp-1", 1, part(50, "x1"))
    assert compared(first, run("swamp-0", 0, part(50, "x0")), by_seed, run("swamp-1", 1, part(50, "x1"))).notes == (
        "The seeds of imp also differ in task_data.test.digest; their mean is taken anyway.",
        "The seeds of swamp also differ in task_data.test.digest; their mean is taken anyway.",
    )
    with pytest.raises(SwampError, match=r"task_data\.test\.examples is 50 .*, 60 "):
        compared(first, run("swamp-more", 0, part(60, "x0")))
    with pytest.raises(SwampError, match=r"task_data\.test\.digest is x0 .*, x9 "):
        compared(first, run("swamp-other", 0, part(50, "x9")))
    # The digests of other types are of other parts of the data.
    loader = run("swamp-loader", 0, part(50, "zz", "DatasetData"), part(400, "bb"))
    assert "task_data.train.examples is 100 (imp), 400 (swamp)" in compared(first, loader).notes[0]
