"""Metrics that are NaN or infinite: null in files, shown as such, in no mean, and no table hides that."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import swamp
from swamp.algorithms import Cycle
from swamp.api.progress import LiveReporter
from swamp.cli import main
from swamp.cli.study_progress import reached
from swamp.console import plain_console
from swamp.report.comparison import compare
from swamp.report.run_records import read_run
from swamp.training import Training

from .runs import cycle, metrics, write_run


def spoilt(record: dict, accuracy: float | None = None) -> dict:
    return {**record, "test": {**metrics(0.5), "accuracy": accuracy}}


def runs_of(tmp_path: Path, value: float | None) -> list[Path]:
    sound = [cycle(0, 1.0, 0.9), cycle(1, 0.5, 0.8)]
    wrong = [cycle(0, 1.0, 0.9), spoilt(cycle(1, 0.5, 0.7), value)]
    return [write_run(tmp_path / f"{i}", wrong if i == 2 else sound, seed=i) for i in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_metric_that_is_not_finite_makes_its_mean_none_and_the_table_names_the_cycle(value, tmp_path, capsys):
    paths = runs_of(tmp_path, value)
    comparison = compare([read_run(path) for path in paths])
    cell = comparison.rows[1].cells["imp"]
    assert not math.isfinite(cell.mean)
    assert cell.n == 3
    (note,) = comparison.notes
    assert note == "imp: test accuracy was NaN or infinite 1 time, and so is a mean with it: seed 2, cycle 1."
    main(["compare", *map(str, paths), "--out", str(tmp_path / "out")])
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert " inf " in shown if value == math.inf else " nan " in shown
    assert note in shown
    assert json.loads(json.dumps(comparison.to_json(), allow_nan=False))["rows"][1]["cells"]["imp"]["mean"] is None


@pytest.mark.slow
def test_a_method_without_any_finite_number_has_tables_plots_and_a_report(tmp_path, capsys):
    wrong = [spoilt(cycle(0, 1.0, 0.9, (0.8, 0.9))), spoilt(cycle(1, 0.5, 0.7, (0.6, 0.7)))]
    for record in wrong:
        record["barrier"] = {"pair": None, "mean": None}
        for particle in record["particles"]:
            particle["test"] = {"accuracy": None, "nll": None, "ece": None}
            particle["loss"] = None
    one = write_run(tmp_path / "a", wrong, method="swamp")
    two = write_run(tmp_path / "b", [cycle(0, 1.0, 0.9), cycle(1, 0.5, 0.8)])
    main(["compare", str(one), str(two), "--out", str(tmp_path / "out")])
    main(["report", str(one), str(two), "--out", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").exists()
    assert "NaN or infinite" in capsys.readouterr().out + (tmp_path / "page.html").read_text()


def test_a_record_read_back_has_nan_where_it_was_written_as_null_and_is_shown(mlp, task, capsys):
    plan = swamp.Plan(method="swamp", sparsity=0.5, prune_fraction=(0.5,), particles=(2,), barrier_threshold=1)
    broken = replace(task, metrics={"accuracy": lambda outputs, targets: math.nan})
    with pytest.warns(UserWarning, match=r"cycle \d .* the error barrier between particles is unknown"):
        record = list(swamp.cycles(mlp, broken, plan, Training(epochs=2, batch_size=16, swa_fraction=0.5)))[-1]
    from swamp.runs.directory import replace_nonfinite

    again = Cycle.from_json(replace_nonfinite(record.to_json()), record.mask, record.weights)
    for one in (record, again):
        assert math.isnan(one.metrics.test["accuracy"])
        assert one.barrier is not None
        assert math.isnan(one.barrier.mean)
        LiveReporter(plain_console()).finished(one)
    assert capsys.readouterr().out.count("nan %") == 4
    assert torch.equal(again.weights["0.weight"], record.weights["0.weight"])


def test_a_study_shows_a_summary_that_is_not_finite():
    assert reached({"test": {"accuracy": None}}) == "accuracy not finite"
    assert reached({"test": {"rmse": None}}) == "rmse not finite"
    assert reached({"test": {"accuracy": 0.5}}) == "accuracy 50.00 %"
