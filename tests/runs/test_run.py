"""What a run leaves on disk."""

import json
import math
import shutil
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from threading import Event

import pytest
import torch

from swamp.algorithms import Plan
from swamp.algorithms.loop import cycles
from swamp.backends import Autotune, Ticket
from swamp.backends.autotune import CANDIDATES, Choice
from swamp.datasets.problem import DataOptions
from swamp.errors import CorruptFile, Interrupted, SwampError
from swamp.files import load_tensors
from swamp.masks import Mask, Scope
from swamp.runs import execute, open_run
from swamp.runs.checkpoints import RunStore
from swamp.runs.config import RunConfig, differences
from swamp.runs.directory import RunDirectory, write_json
from swamp.runs.environment import environment
from swamp.runs.execute import prepare, start
from swamp.runs.run_progress import Reporter
from swamp.training import Task, TensorData, Training, evaluate

from .conftest import StopAt, assert_same_outcome, go, go_on, tiny


def test_the_summary_says_what_the_issue_promises(finished):
    path, done = finished
    assert done["run"] == str(path)
    assert done["method"] == "swamp"
    assert done["sparsity"] == pytest.approx(0.75, abs=1e-3)
    assert set(done["density"]) == {"prunable", "all"}
    assert {"accuracy", "nll"} <= set(done["test"])
    assert done["dense"]["test"] == done["cycles"][0]["test"]
    assert [cycle["cycle"] for cycle in done["cycles"]] == [0, 1, 2]
    assert done["seconds"] > 0
    assert open_run(path)[0].read(path / "summary.json") == done


def test_the_final_file_loads_into_the_plain_network_and_gives_the_recorded_numbers(finished):
    path, done = finished
    problem, model = prepare(tiny())
    model.load_state_dict(load_tensors(path / "model.safetensors")[0])
    assert evaluate(model, problem.task, problem.task.test) == done["test"]
    mask = Mask.load(path / "mask.safetensors")
    mask.require_zeros(model.state_dict())
    assert Mask.from_zeros(model, Scope()).issubset(mask)
    assert mask.sparsity == done["sparsity"]


def test_the_environment_is_recorded_for_every_session(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    go_on(tmp_path / "run")
    sessions = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(sessions) == 2
    assert sessions[0]["packages"]["torch"] == torch.__version__
    assert sessions[0]["threads"] == 1


def test_the_saved_configuration_runs_again_to_the_same_bits(finished, tmp_path):
    path, done = finished
    again = go(RunConfig.load(path / "config.json"), tmp_path / "again")
    assert [c["test"] for c in again["cycles"]] == [c["test"] for c in done["cycles"]]


@pytest.fixture
def timed(monkeypatch):
    """Let the timing find `names[-1]` the fastest backend; `names` is empty where nothing may be timed."""
    names: list[str] = []

    def chosen(auto, *_):
        return Choice(names[-1], "by the clock.", {"sequential": 1.0}), CANDIDATES[names[-1]](*auto.parts)

    monkeypatch.setattr(Autotune, "_timed", chosen)
    return names


@pytest.mark.slow_cases("ensemble")
@pytest.mark.parametrize("method", ["swamp", "imp-ensemble"])
def test_a_rerun_uses_the_backend_that_timing_chose(tmp_path, timed, method):
    config = tiny()
    config = replace(config, plan=replace(config.plan, method=method))
    several = method == "swamp"  # each member of an ensemble is a single particle, and nothing is timed
    timed.append("multi-stream")
    go(config, tmp_path / "first")
    saved = RunConfig.load(tmp_path / "first" / "config.json")
    assert saved.backend == ("auto:multi-stream" if several else "auto")
    assert saved.digest() == config.digest()
    go_on(tmp_path / "first")
    # Another machine, or another moment: nothing may be timed now.
    timed[:] = ["threads"] if not several else []
    go(saved, tmp_path / "again")
    assert_same_outcome(tmp_path / "first", tmp_path / "again")
    assert RunConfig.load(tmp_path / "again" / "config.json") == saved


@pytest.mark.slow
def test_a_run_that_was_killed_before_it_noted_the_choice_elsewhere_keeps_to_it(tmp_path, timed):
    timed.append("multi-stream")
    stop = Event()
    with pytest.raises(Interrupted):
        start(tiny(), tmp_path / "run", StopAt(60, stop), stop)
    (tmp_path / "run" / "backend.json").unlink()
    timed.clear()
    go_on(tmp_path / "run")
    timed.append("multi-stream")
    go(tiny(), tmp_path / "whole")
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


def test_an_earlier_choice_is_a_name_and_a_wrong_one_is_refused():
    assert replace(tiny(), backend="auto:vmapped").backend == "auto:vmapped"
    with pytest.raises(SwampError, match=r"unknown backend 'auto:vmaped'\. Did you mean auto:vmapped"):
        replace(tiny(), backend="auto:vmaped")


def test_a_choice_of_the_backend_that_lacks_an_entry_is_refused_by_the_name_of_its_file(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.write(directory.backend, {"backend": "threads"})
    with pytest.raises(CorruptFile, match=r"backend\.json is damaged: this is not a record.*delete it and resume"):
        RunStore(directory, Reporter(), Event()).choice()


def test_only_means_are_kept_where_asked(config, tmp_path):
    go(replace(config, keep_checkpoints="means"), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("particle-*"))
    assert len(list((tmp_path / "run").rglob("mean.safetensors"))) == 3
    go_on(tmp_path / "run")


@pytest.mark.slow
def test_threads_are_put_back_after_a_run(config, tmp_path):
    go(replace(config, threads=2), tmp_path / "run")
    assert torch.get_num_threads() == 1


def test_a_ticket_in_training_is_saved_too(config, tmp_path):
    stop = Event()
    with pytest.raises(Interrupted):
        start(config, tmp_path / "run", StopAt(5, stop), stop)
    assert RunDirectory(tmp_path / "run").snapshot(None, 0).exists()


def test_an_environment_without_information_is_no_error(monkeypatch):
    def fails(*_, **__):
        raise OSError

    monkeypatch.setattr("subprocess.run", fails)
    monkeypatch.setattr("pathlib.Path.read_text", fails)
    monkeypatch.setattr("importlib.metadata.version", lambda _: (_ for _ in ()).throw(PackageNotFoundError))
    told = environment(torch.device("cpu"))
    assert told["git"] is None
    assert told["packages"] == {"torch": torch.__version__}
    assert isinstance(told["processor"], str)


def test_values_that_json_does_not_know_are_written_as_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [float("nan"), 1.5], "b": (float("inf"), "c")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": [None, "c"]}


@pytest.mark.slow
def test_quiet_is_quiet(capsys, config, tmp_path):
    Reporter().started(3)
    go(config, tmp_path / "run")
    assert capsys.readouterr() == ("", "")


def test_differences_name_only_what_decides_the_result():
    a = tiny()
    assert differences(a, replace(a, keep_checkpoints="means", device="cpu", recipe="x")) == []
    assert differences(a, replace(a, threads=2)) == ["threads: 1 -> 2"]


def test_every_cycle_lies_whole_on_disk(finished):
    path, done = finished
    for index in range(3):
        files = {file.name for file in (path / f"cycle-{index:02d}").iterdir()}
        assert files == {
            "mask.safetensors",
            "mean.safetensors",
            "particle-0.safetensors",
            "particle-1.safetensors",
            "record.json",
        }
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["test"] for line in lines] == [cycle["test"] for cycle in done["cycles"]]
    assert Ticket.load(path / "ticket.safetensors").steps == 10


class Unread(TensorData):
    """Data that raises when it is read."""

    def in_order(self, batch_size):
        raise AssertionError("the test data was read")


def unread_test(build):
    def blind(*arguments):
        problem = build(*arguments)
        test = problem.task.test
        return replace(problem, task=replace(problem.task, test=Unread(test.inputs, test.targets)))

    return blind


@pytest.mark.parametrize(
    "method",
    [
        "swamp",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "imp",
                "swamp-greedy",
                "imp-best",
                "imp-ensemble",
                "lottery-pools",
                "rigl-swamp",
                "one-shot-fisher",
            )
        ),
    ],
)
def test_a_run_without_test_data_does_not_read_it_and_trains_the_same(method, tmp_path, monkeypatch):
    config = tiny(model="mlp-bn-16", data=DataOptions(examples=320), backend="sequential")
    dynamic = replace(config.plan.dynamic, update_interval=3)
    config = replace(config, plan=replace(config.plan, method=method, sparsity=0.5, dynamic=dynamic))
    done = go(config, tmp_path / "with")
    monkeypatch.setattr(execute, "build_problem", unread_test(execute.build_problem))
    blind = replace(config, test_data=False)
    without = go(blind, tmp_path / "without")
    assert blind.digest() == config.digest()
    assert set(without["test"].values()) == {None}
    for one, two in zip(done["cycles"], without["cycles"], strict=True):
        assert two["validation"] == one["validation"]
        assert two["train"] == one["train"]
        assert two["barrier"] == one["barrier"]
        assert two["metrics_before_bn_update"] is None
        assert set(two["test"]) == set(one["test"])
        assert set(two["test"].values()) == {None}
    with pytest.raises(AssertionError, match="the test data was read"):
        go(config, tmp_path / "again")


def test_without_test_and_validation_data_there_is_nothing_to_measure_on(tmp_path):
    config = tiny(test_data=False, data=DataOptions(examples=320, validation=0.0))
    with pytest.raises(SwampError, match="measured on validation data, and this task has none"):
        go(config, tmp_path / "run")


def test_a_task_of_two_functions_is_measured_by_the_second_without_test_data():
    def evaluate(model):
        raise AssertionError("the test data was read")

    data = torch.randn(40, 4)
    how = {"loss": lambda model, batch: (model(batch) - batch).square().mean(), "evaluate": evaluate}
    task = Task.custom(data, validate=lambda model: {"mse": 0.5}, error_scale=1.0, **how)
    training = Training(epochs=2, batch_size=20, lr=0.01)
    plan = Plan(method="imp", sparsity=0.5, cycles=1)
    (_, cycle) = cycles(torch.nn.Linear(4, 4), task.without_test(), plan, training, backend="sequential")
    assert cycle.metrics.validation == {"mse": 0.5}
    assert math.isnan(cycle.metrics.test["mse"])
    with pytest.raises(SwampError, match="read"):
        list(cycles(torch.nn.Linear(4, 4), task, plan, training, backend="sequential"))
    with pytest.raises(SwampError, match="measured on validation data, and this task has none"):
        Task.custom(data, **how).without_test()
