import json
from pathlib import Path

import pytest

from swamp.errors import SwampError
from swamp.report.comparison import metric_of
from swamp.report.run_records import read_run

from .runs import cycle, write_run


def test_a_run_is_read_back_cycle_by_cycle(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", [cycle(0, 1.0, 0.9), cycle(1, 0.8, 0.91)], seed=3))
    assert run.config["seed"] == 3
    assert [c["density"]["prunable"] for c in run.cycles] == [1.0, 0.8]


def test_a_run_that_did_not_read_test_data_has_no_test_metrics(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [cycle(0, 1.0, 0.9)], seed=3)
    assert read_run(path).cycles[0]["test"]
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"test_data": False}))
    (found,) = read_run(path).cycles
    assert found["test"] == {}
    assert all(particle["test"] == {} for particle in found["particles"])
    assert found["train"]
    with pytest.raises(SwampError, match=r"measured the test split.*swamp compare --split.*Trials of swamp tune"):
        metric_of([read_run(path)], "", "test")


def test_a_directory_that_is_no_run_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(SwampError, match=r"not a run directory: expected config\.json and metrics\.jsonl"):
        read_run(tmp_path)


def test_a_directory_of_runs_names_the_runs_inside(tmp_path: Path) -> None:
    write_run(tmp_path / "inner", [cycle(0, 1.0, 0.9)])
    with pytest.raises(SwampError, match="runs inside it: inner"):
        read_run(tmp_path)


def test_a_path_that_does_not_exist_says_so(tmp_path: Path) -> None:
    with pytest.raises(SwampError, match="does not exist"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("empty_file", [True, False])
def test_a_run_without_a_finished_cycle_says_so(tmp_path: Path, empty_file: bool) -> None:
    path = write_run(tmp_path / "a", [])
    if not empty_file:
        (path / "metrics.jsonl").unlink()
    with pytest.raises(SwampError, match="no finished cycle yet"):
        read_run(path)


@pytest.mark.parametrize(
    "line",
    ['{"cycle": 1, "spars', "", "[1]", "{}", '{"cycle": 1, "steps": 1, "samples": 1, "seconds": 1}', "\udcff"],
    ids=["cut short", "empty", "list", "no keys", "no density", "not text"],
)
def test_a_damaged_line_is_named_by_file_and_number_even_when_it_is_the_last(tmp_path: Path, line: str) -> None:
    path = write_run(tmp_path / "a", [cycle(0, 1.0, 0.9)])
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(SwampError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_run(path)


def test_a_cycle_that_is_there_twice_is_damage(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [cycle(0, 1.0, 0.9), cycle(0, 1.0, 0.9)])
    with pytest.raises(SwampError, match="line 2 is damaged: cycle 0 comes after cycle 0"):
        read_run(path)


def test_a_config_without_a_method_names_the_missing_key(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [cycle(0, 1.0, 0.9)])
    (path / "config.json").write_text('{"task": "t", "model": "m", "seed": 0}')
    with pytest.raises(SwampError, match="has no 'method'"):
        read_run(path)


def test_a_plan_that_is_not_an_object_is_named(tmp_path):
    run = write_run(tmp_path / "run", [cycle(0, 1.0, 0.9)])
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "plan": [0]}))
    with pytest.raises(SwampError, match=r"config.json is damaged: 'plan' is not an object"):
        read_run(run)
