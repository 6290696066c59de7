"""What a run leaves on disk, and what it refuses."""

import json
import os
import re
import resource
import shutil
import signal
from collections import namedtuple
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from threading import Event

import pytest
import torch

from swamp.errors import Diverged, Interrupted, SwampError
from swamp.files import load_tensors
from swamp.live import Quiet
from swamp.particles import Ticket
from swamp.runs import RunConfig, RunDirectory, differences, execute, prepare, start
from swamp.runs.directory import write_json
from swamp.runs.environment import environment
from swamp.sparsity import Mask
from swamp.training import evaluate

from .conftest import StopAt, go, go_on, in_child, tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    return path, go(tiny(), path)


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
    assert json.loads((path / "summary.json").read_text()) == done


def test_the_final_file_loads_into_the_plain_network_and_gives_the_recorded_numbers(finished):
    path, done = finished
    problem, model = prepare(tiny())
    model.load_state_dict(load_tensors(path / "model.safetensors")[0])
    assert evaluate(model, problem.task, problem.task.test) == done["test"]
    mask = Mask.load(path / "mask.safetensors")
    mask.require_zeros(model.state_dict())
    assert Mask.from_zeros(model).issubset(mask)
    assert mask.sparsity == done["sparsity"]


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


def test_the_environment_is_recorded_for_every_session(config, tmp_path):
    go(config, tmp_path / "run")
    go_on(tmp_path / "run")
    sessions = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(sessions) == 2
    assert sessions[0]["packages"]["torch"] == torch.__version__
    assert sessions[0]["threads"] == 1


def test_the_saved_configuration_runs_again_to_the_same_bits(finished, tmp_path):
    path, done = finished
    again = go(RunConfig.load(path / "config.json"), tmp_path / "again")
    assert [c["test"] for c in again["cycles"]] == [c["test"] for c in done["cycles"]]


def test_only_means_are_kept_where_asked(config, tmp_path):
    go(replace(config, keep="means"), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("particle-*"))
    assert len(list((tmp_path / "run").rglob("mean.safetensors"))) == 3
    go_on(tmp_path / "run")


def test_threads_are_put_back_after_a_run(config, tmp_path):
    go(replace(config, threads=2), tmp_path / "run")
    assert torch.get_num_threads() == 1


def test_nothing_is_written_where_the_input_is_wrong(config, tmp_path):
    for wrong, message in (
        ({"task": "digit"}, "unknown task 'digit'. Did you mean digits"),
        ({"model": "resnet-21"}, "resnet"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"device": "cuda:7"}, "torch sees"),
    ):
        with pytest.raises(SwampError, match=message):
            go(replace(config, **wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_with_another_run_is_refused_naming_the_field(finished):
    path, _ = finished
    other = tiny()
    other = replace(other, training=replace(other.training, lr=0.06))
    with pytest.raises(SwampError, match=r"holds another run \(training.lr: 0.05 -> 0.06\)"):
        go(other, path)


def test_a_directory_with_this_very_run_is_refused_saying_how_to_go_on(finished, tmp_path):
    path, _ = finished
    with pytest.raises(SwampError, match="this very run, which is finished"):
        go(tiny(), path)
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    (copy / "summary.json").unlink()
    with pytest.raises(SwampError, match=re.escape(f"swamp resume {copy}")):
        go(tiny(), copy)


def test_a_run_that_appears_while_the_data_is_read_is_not_overwritten(config, tmp_path, monkeypatch):
    original = execute.prepare

    def slow(given):
        prepared = original(given)
        monkeypatch.setattr(execute, "prepare", original)
        go(config, tmp_path / "run")
        return prepared

    monkeypatch.setattr(execute, "prepare", slow)
    late = replace(config, plan=replace(config.plan, seed=5))
    with pytest.raises(SwampError, match=r"holds another run \(plan.seed: 0 -> 5\)"):
        go(late, tmp_path / "run")


def test_a_directory_with_other_files_is_refused(config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SwampError, match="not empty and holds no run"):
        go(config, tmp_path)


def test_resuming_nothing_says_so(tmp_path):
    with pytest.raises(SwampError, match="holds no run"):
        go_on(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("lr", 0.2, r"training.lr: 0.05 -> 0.2"), ("epochs", 5, r"training.epochs: 4 -> 5")],
)
def test_resuming_with_a_changed_configuration_names_the_field(finished, tmp_path, field, value, message):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    values = json.loads((copy / "config.json").read_text())
    values["training"][field] = value
    write_json(copy / "config.json", values)
    with pytest.raises(SwampError, match=message):
        go_on(copy)


def test_what_does_not_decide_the_result_may_change_between_sessions(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    config = replace(RunConfig.load(copy / "config.json"), keep="means", snapshot_seconds=5.0)
    write_json(copy / "config.json", config.to_json())
    go_on(copy)


@pytest.mark.parametrize("name", ["ticket", "cycle-01/mean", "cycle-01/mask", "cycle-00/particle-0"])
def test_a_damaged_file_is_named_and_nothing_is_computed_from_it(finished, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    path = copy / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)
    (copy / "cycle-02" / "record.json").unlink()
    if name.endswith("particle-0"):
        (copy / "cycle-00" / "record.json").unlink()
    with pytest.raises(SwampError, match=re.escape(str(path)) + "|" + re.escape(str(path.parent))):
        go_on(copy)


def test_files_of_another_run_are_noticed(finished, tmp_path):
    other = tiny()
    go(replace(other, plan=replace(other.plan, seed=1)), tmp_path / "other")
    for name, gone in (("cycle-01/mean", "cycle-02"), ("cycle-02/particle-1", "cycle-02")):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(finished[0], copy)
        shutil.copy(tmp_path / "other" / f"{name}.safetensors", copy / f"{name}.safetensors")
        (copy / gone / "record.json").unlink()
        with pytest.raises(SwampError, match=r"not the file its record|another ticket or mask"):
            go_on(copy)


def test_a_damaged_record_is_named(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    (copy / "cycle-01" / "record.json").write_text('{"cycle": 1')
    with pytest.raises(SwampError, match=r"cycle-01/record.json is damaged"):
        go_on(copy)


def test_too_little_disk_space_is_said_before_training(config, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(SwampError, match=r"needs up to .* MB .*--keep means"):
        go(config, tmp_path / "run")
    assert not (tmp_path / "run" / "ticket.safetensors").exists()


def test_an_ensemble_needs_the_space_of_all_its_members_and_a_resume_only_what_is_missing(
    config, finished, tmp_path, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    asked = []
    for method in ("imp", "imp-ensemble"):
        large = replace(config, model="mlp-2048", plan=replace(config.plan, method=method, particles=(9,)))
        with pytest.raises(SwampError) as error:
            go(large, tmp_path / method)
        asked.append(float(re.search(r"up to ([\d.,]+) MB", str(error.value))[1]))
    assert asked[1] == pytest.approx(10 * asked[0], rel=0.1)
    assert asked[0] > 5
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    (copy / "padding.safetensors").write_bytes(b"\0" * 1_000_000)
    go_on(copy)


def test_a_disk_that_fills_up_ends_the_run_clearly_and_it_goes_on_later(finished, tmp_path):
    """RLIMIT_FSIZE makes every write beyond 6 kB fail, as a full disk would."""
    run = tmp_path / "run"

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        try:
            go(tiny(), run)
        except SwampError as error:
            (tmp_path / "message").write_text(str(error))

    os.waitpid(in_child(limited), 0)
    assert "Nothing that was there is lost" in (tmp_path / "message").read_text()
    done = go_on(run)
    assert [c["test"] for c in done["cycles"]] == [c["test"] for c in finished[1]["cycles"]]


def test_a_directory_that_cannot_be_written_is_said(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SwampError, match="cannot write to the run directory"):
        go(config, tmp_path / "file" / "run")


def test_a_snapshot_of_another_run_is_refused(config, tmp_path):
    for seed in (0, 1):
        stop = Event()
        seeded = replace(config, plan=replace(config.plan, seed=seed))
        with pytest.raises(Interrupted):
            start(seeded, tmp_path / str(seed), StopAt(30, stop), stop)
    name = "cycle-00/unfinished-0.safetensors"
    shutil.copy(tmp_path / "1" / name, tmp_path / "0" / name)
    with pytest.raises(SwampError, match="belongs to another run"):
        go_on(tmp_path / "0")
    (tmp_path / "0" / name).write_bytes(b"\0" * 100)
    with pytest.raises(SwampError, match="not a whole safetensors file"):
        go_on(tmp_path / "0")


def test_a_ticket_in_training_is_saved_too(config, tmp_path):
    stop = Event()
    with pytest.raises(Interrupted):
        start(config, tmp_path / "run", StopAt(5, stop), stop)
    assert RunDirectory(tmp_path / "run").snapshot(None, 0).exists()


def test_a_training_that_diverges_says_who_where_and_how_to_go_on(config, tmp_path):
    wild = replace(config, training=replace(config.training, lr=1e30), plan=replace(config.plan, ticket_epochs=0))
    with pytest.raises(Diverged, match=r"cycle 0, particle 0: .* --config .*/run/config.json --lr .* --out NEW"):
        go(wild, tmp_path / "run")
    assert Ticket.load(tmp_path / "run" / "ticket.safetensors").steps == 0


def test_an_environment_that_tells_nothing_is_no_error(monkeypatch):
    def fails(*_, **__):
        raise OSError

    monkeypatch.setattr("subprocess.run", fails)
    monkeypatch.setattr("pathlib.Path.read_text", fails)
    monkeypatch.setattr("importlib.metadata.version", lambda _: (_ for _ in ()).throw(PackageNotFoundError))
    told = environment(torch.device("cpu"))
    assert told["git"] is None
    assert told["packages"] == {}
    assert isinstance(told["processor"], str)


def test_values_that_json_does_not_know_are_written_as_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [float("nan"), 1.5], "b": (float("inf"), "c")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": [None, "c"]}


def test_a_snapshot_that_was_altered_is_refused(config, tmp_path):
    stop = Event()
    with pytest.raises(Interrupted):
        start(config, tmp_path / "run", StopAt(30, stop), stop)
    path = RunDirectory(tmp_path / "run").snapshot(0, 0)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(SwampError, match=r"unfinished-0.safetensors is damaged. Delete it and resume"):
        go_on(tmp_path / "run")


def test_quiet_is_quiet(capsys, config, tmp_path):
    Quiet().started(3)
    go(config, tmp_path / "run")
    assert capsys.readouterr() == ("", "")


def test_differences_name_only_what_decides_the_result():
    a = tiny()
    assert differences(a, replace(a, keep="means", device="cpu", recipe="x")) == []
    assert differences(a, replace(a, threads=2)) == ["threads: 1 -> 2"]
