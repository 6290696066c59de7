"""What a run refuses, before anything is lost."""

import json
import os
import re
import resource
import shutil
import signal
from collections import namedtuple
from dataclasses import replace
from threading import Event

import pytest
from torch import nn

from swamp.algorithms import Plan
from swamp.backends import Ticket
from swamp.datasets.problem import DataOptions
from swamp.errors import CorruptFile, Diverged, Interrupted, SwampError
from swamp.runs import execute, open_run
from swamp.runs.config import RunConfig
from swamp.runs.directory import RunDirectory, write_json
from swamp.runs.execute import start
from swamp.runs.read import read_cycle, read_particle, read_record, write_config
from swamp.runs.validation import check_disk_space
from swamp.training import Training

from .conftest import StopAt, assert_same_outcome, go, go_on, in_child, tiny


def test_nothing_is_written_where_the_input_is_wrong(config, tmp_path):
    for wrong, message in (
        ({"task": "digit"}, "unknown task 'digit'. Did you mean digits"),
        ({"model": "resnet-21"}, "resnet"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"device": "cuda:7"}, "torch sees"),
        ({"shard": True}, r"each of 2 particles over two ranks or more; this job has 1\. Start 4 "),
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


@pytest.mark.slow
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


@pytest.mark.parametrize(("field", "value"), [("lr", 0.2), ("epochs", 5)])
def test_resuming_with_a_changed_configuration_is_refused(finished, tmp_path, field, value):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    values = json.loads((copy / "config.json").read_text())
    values["training"][field] = value
    write_json(copy / "config.json", values)
    with pytest.raises(
        SwampError, match=r"config.json was changed since this run began.* --config .*config.json --out"
    ):
        go_on(copy)
    assert getattr(RunConfig.load(copy / "config.json").training, field) == value


def test_resuming_with_other_data_in_the_users_file_is_refused(tmp_path):
    rows = [f"{number % 7},{number % 5},{number % 2}" for number in range(40)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    training = Training(epochs=2, batch_size=8, lr=0.05)
    plan = replace(tiny().plan, sparsity=0.5)
    config = tiny(task="csv", plan=plan, training=training, data=DataOptions(folder=str(table)), recipe="")
    stop = Event()
    with pytest.raises(Interrupted):
        start(config, tmp_path / "run", StopAt(3, stop), stop)
    table.write_text("\n".join(["9,9,1", *rows[1:]]))
    with pytest.raises(SwampError, match=r"cannot be continued: the data in .*table.csv were changed since this run"):
        go_on(tmp_path / "run")
    table.write_text("\n".join(rows))
    go_on(tmp_path / "run")


def test_resuming_with_the_configuration_of_another_run_is_refused(finished, tmp_path):
    copy, other = tmp_path / "copy", RunDirectory(tmp_path / "other", "0123456789ab")
    shutil.copytree(finished[0], copy)
    write_config(other, replace(tiny(), threads=2))
    shutil.copy(other.config, copy / "config.json")
    with pytest.raises(SwampError, match=r"config.json belongs to run 0123456789ab, and ticket.safetensors, .* to run"):
        go_on(copy)
    assert not list(copy.rglob("*.quarantined"))


def test_what_does_not_decide_the_result_may_change_between_sessions(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    values = json.loads((copy / "config.json").read_text())
    write_json(copy / "config.json", {**values, "keep_checkpoints": "means", "snapshot_seconds": 5.0})
    go_on(copy)


@pytest.mark.parametrize("name", ["ticket", "cycle-01/mean", "cycle-01/mask", "cycle-00/particle-0"])
def test_a_damaged_file_is_named_quarantined_and_made_again(finished, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    path = copy / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)
    (copy / "cycle-02" / "record.json").unlink()
    if name.endswith("particle-0"):
        (copy / "cycle-00" / "record.json").unlink()
    with pytest.warns(UserWarning, match=re.escape(str(path)) + " is damaged"):
        go_on(copy)
    assert path.with_name(f"{path.name}.quarantined").read_bytes() == data
    assert_same_outcome(finished[0], copy)


@pytest.mark.slow
def test_files_of_another_run_are_noticed(finished, tmp_path):
    other = tiny()
    go(replace(other, plan=replace(other.plan, seed=1)), tmp_path / "other")
    for name, gone in (("cycle-01/mean", "cycle-02"), ("cycle-02/particle-1", "cycle-02")):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(finished[0], copy)
        shutil.copy(tmp_path / "other" / f"{name}.safetensors", copy / f"{name}.safetensors")
        (copy / gone / "record.json").unlink()
        with pytest.warns(UserWarning, match=r"not the file its record|belongs to another run"):
            go_on(copy)
        assert_same_outcome(finished[0], copy)


def test_a_damaged_record_is_named(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    (copy / "cycle-01" / "record.json").write_text('{"cycle": 1')
    with pytest.warns(UserWarning, match=r"cycle-01/record.json is damaged"):
        go_on(copy)
    assert_same_outcome(finished[0], copy)


def test_a_record_that_lacks_an_entry_is_named_and_made_again(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    directory, _ = open_run(copy)
    record = read_record(directory, 1)
    directory.write(directory.record(1), {name: value for name, value in record.items() if name != "particles"})
    with pytest.raises(CorruptFile, match=re.escape(str(directory.record(1))) + ".*'particles'"):
        read_cycle(directory, 1)
    with pytest.warns(UserWarning, match=r"'particles'.* cycle 1 is computed again"):
        go_on(copy)
    assert_same_outcome(finished[0], copy)


def test_a_damaged_cycle_of_which_nothing_was_kept_is_refused_saying_what_to_do(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    for particle in (copy / "cycle-01").glob("particle-*"):
        particle.unlink()
    record = copy / "cycle-01" / "record.json"
    record.write_text('{"cycle": 1')
    with pytest.raises(SwampError, match=rf"delete {re.escape(str(record))} and resume: cycle 1 is trained again"):
        go_on(copy)
    record.unlink()
    go_on(copy)
    assert_same_outcome(finished[0], copy)


def test_a_cycle_that_was_made_from_another_one_is_refused(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    directory, _ = open_run(copy)
    (copy / "cycle-00" / "record.json").unlink()
    # As on a machine that rounds in another way.
    particle = read_particle(directory, 0, 0)
    moved = {name: value * 1.001 if value.is_floating_point() else value for name, value in particle.weights.items()}
    path = directory.particle(0, 0)
    replace(particle, weights=moved).save(path, directory.provenance(path))
    with pytest.raises(SwampError, match=r"cycle-01/record.json was made from another cycle 0 than the one on disk"):
        go_on(copy)


def test_too_little_disk_space_is_said_before_training(config, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(SwampError, match=r"needs up to .* MB .*keep_checkpoints=\"means\""):
        go(config, tmp_path / "run")
    assert not (tmp_path / "run" / "ticket.safetensors").exists()
    with pytest.raises(SwampError, match=r"choose another directory\.$"):
        go(replace(config, keep_checkpoints="means"), tmp_path / "run")
    with pytest.raises(SwampError, match=r"or keep fewer trajectory points with trajectory_every\.$"):
        go(replace(config, trajectory_every=1), tmp_path / "run")


def test_the_space_of_trajectories_is_that_of_the_steps_that_particles_take_alone(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))

    def megabytes(method: str, **changes) -> float:
        plan = Plan(method, 0.5, (4,), cycles=1, ticket_epochs=0, **changes)
        config = tiny(plan=plan, trajectory_every=1)
        with pytest.raises(SwampError) as error:
            check_disk_space(RunDirectory(tmp_path), config, nn.Linear(100, 100), 1000)
        return float(re.search(r"up to ([\d.,]+) MB", str(error.value))[1].replace(",", ""))

    assert megabytes("imp-long") == pytest.approx(4 * megabytes("imp"), rel=0.01)
    # Three times as many epochs in the sparse cycle, which stores half of the weights.
    assert megabytes("lrr", retrain_epochs=12) == pytest.approx(megabytes("lrr") * (1 + 3 / 2) / (1 + 1 / 2), rel=0.01)
    assert megabytes("swamp", branch=0.25) == pytest.approx(megabytes("swamp") * 0.25, rel=0.01)


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


def test_a_full_disk_ends_the_run_with_advice_and_it_can_be_resumed(finished, tmp_path):
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
    assert "Existing files are kept" in (tmp_path / "message").read_text()
    done = go_on(run)
    assert [c["test"] for c in done["cycles"]] == [c["test"] for c in finished[1]["cycles"]]


def test_a_directory_that_cannot_be_written_is_said(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SwampError, match=r"cannot be a run directory: .*file is no directory"):
        go(config, tmp_path / "file" / "run")


@pytest.mark.slow
def test_a_snapshot_of_another_run_is_quarantine(config, finished, tmp_path):
    for seed in (0, 1):
        stop = Event()
        seeded = replace(config, plan=replace(config.plan, seed=seed))
        with pytest.raises(Interrupted):
            start(seeded, tmp_path / str(seed), StopAt(30, stop), stop)
    name = "cycle-00/unfinished-0.safetensors"
    shutil.copy(tmp_path / "1" / name, tmp_path / "0" / name)
    with pytest.warns(UserWarning, match="belongs to another run"):
        go_on(tmp_path / "0")
    assert (tmp_path / "0" / f"{name}.quarantined").exists()
    assert_same_outcome(finished[0], tmp_path / "0")


def test_a_divergence_names_particle_step_and_remedy(config, tmp_path):
    wild = replace(
        config,
        training=replace(config.training, lr=1e30),
        plan=replace(config.plan, ticket_epochs=0, on_divergence="stop"),
    )
    with pytest.raises(Diverged, match=r"cycle 0, particle 0: .* --config .*/run/config.json --lr .* --out NEW"):
        go(wild, tmp_path / "run")
    assert Ticket.load(tmp_path / "run" / "ticket.safetensors").steps == 0


def test_a_snapshot_that_was_altered_is_quarantine(config, finished, tmp_path):
    stop = Event()
    with pytest.raises(Interrupted):
        start(config, tmp_path / "run", StopAt(30, stop), stop)
    path = RunDirectory(tmp_path / "run").snapshot(0, 0)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"unfinished-0.safetensors is damaged.*this training starts again"):
        go_on(tmp_path / "run")
    assert_same_outcome(finished[0], tmp_path / "run")
