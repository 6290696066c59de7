"""Runs of several processes, as torchrun starts them: each start takes seconds, so these tests are few and long."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from swamp.algorithms import Plan
from swamp.cli import main
from swamp.runs.config import RunConfig

from .conftest import assert_same_outcome, go, go_on, tiny

LINE = re.compile(r"^swamp: ", re.MULTILINE)


def launched(ranks: int, *arguments: object, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options]
    return subprocess.Popen(
        [*command, "-m", "swamp", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def eventually(true: Callable[[], object], job: subprocess.Popen[str]) -> None:
    while not true():
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)


def pids(run: Path) -> dict[int, int]:
    """Rank to process id, as the run's last session wrote it down."""
    members = json.loads((run / "environment.json").read_text())[-1]["ranks"]
    return {int(rank): int(pid) for rank, pid in (re.findall(r"rank (\d+) .*pid (\d+)", m)[0] for m in members)}


def long() -> RunConfig:
    """Two cycles of four particles, some seconds of work in all."""
    plan = Plan(sparsity=0.5, particles=(4,), prune_fraction=(0.5,), ticket_epochs=1, barrier_threshold=1.0)
    config = tiny(plan=plan, snapshot_seconds=0.05, backend="sequential")
    return replace(config, training=replace(config.training, epochs=30))


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The run of one process, undisturbed; its configuration is what the others run."""
    path = tmp_path_factory.mktemp("reference") / "run"
    go(long(), path)
    return path


def training_of(run: Path, cycle: int) -> Callable[[], object]:
    return lambda: list((run / f"cycle-{cycle:02d}").glob("unfinished-*"))


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_resumes_with_other_ranks(reference, tmp_path):
    run = tmp_path / "run"
    job = launched(3, "run", "--config", reference / "config.json", "--out", run)
    eventually(training_of(run, 1), job)
    who = pids(run)
    os.kill(who[2], signal.SIGKILL)
    told = job.communicate()[1]
    assert job.returncode != 0
    assert re.search(rf"swamp: rank 2 \(host \S+, pid {who[2]}\) died\. .* swamp resume {run}", told)
    assert len(LINE.findall(told)) == 1
    finished = {path: path.stat().st_mtime_ns for path in run.glob("cycle-00/*")}
    job = launched(2, "resume", run, "--json")
    done = json.loads(job.communicate()[0])
    assert job.returncode == 0
    assert len(done["cycles"]) == 2
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert_same_outcome(reference, run)
    assert not list(run.rglob("unfinished-*"))


@pytest.mark.slow
def test_with_restarts_the_job_continues_after_rank_0_is_killed(reference, tmp_path):
    run = tmp_path / "run"
    job = launched(
        2, "run", "--config", reference / "config.json", "--out", run, "--quiet", options=("--max-restarts=1",)
    )
    eventually(training_of(run, 0), job)
    killed = pids(run)[0]
    os.kill(killed, signal.SIGKILL)
    told = job.communicate()[1]
    assert job.returncode == 0, told
    assert f"pid {killed}) died." in told
    assert_same_outcome(reference, run)


@pytest.mark.slow
def test_after_a_signal_all_ranks_save_and_one_process_can_resume(reference, tmp_path):
    run = tmp_path / "run"
    job = launched(2, "run", "--config", reference / "config.json", "--out", run)
    eventually(lambda: len(training_of(run, 0)()) == 2, job)
    job.send_signal(signal.SIGTERM)
    told = job.communicate()[1]
    assert LINE.findall(told) == ["swamp: "]
    # By whichever rank heard of the signal first: "swamp: stopped." or "swamp: rank 1 (...) was stopped."
    assert f"stopped. Continue with: swamp resume {run}" in told
    go_on(run)
    assert_same_outcome(reference, run)


@pytest.mark.slow
def test_a_sharded_run_can_be_resumed_by_one_process(reference, tmp_path):
    run = tmp_path / "run"
    options = ("--particles", 1, "--epochs", 30, "--shard", "--out", run)
    job = launched(2, "run", "--config", reference / "config.json", *options)
    eventually(training_of(run, 0), job)
    job.send_signal(signal.SIGTERM)
    told = job.communicate()[1]
    # By whichever rank heard of the signal first: "swamp: stopped." or "swamp: rank 1 (...) was stopped."
    assert f"stopped. Continue with: swamp resume {run}" in told
    assert [record["sparsity"] for record in go_on(run)["cycles"]] == [0, 0.5]


@pytest.mark.slow
def test_a_refused_configuration_is_printed_once_and_all_ranks_exit_with_code_2():
    job = launched(2, "run", "digits-mlp", "--model", "nothing")
    told = job.communicate()[1]
    assert LINE.findall(told) == ["swamp: "]
    assert re.findall(r"exitcode  : (\d+)", told) == ["2", "2"]


@pytest.mark.slow
def test_one_rank_under_torchrun_is_a_run_of_one_process(config, tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    go(config, tmp_path / "run")


CUSTOM = """
import torch
import swamp

x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
y = x[:, :3].argmax(1)


def task():
    def loss(model, batch):
        return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def evaluate(model):
        return {"accuracy": (model(x).argmax(1) == y).float().mean()}

    return swamp.Task.custom({"x": x, "y": y}, loss, evaluate)


def model():
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
"""


@pytest.mark.slow
def test_ranks_train_a_task_of_two_functions_as_one_process_does(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CUSTOM)
    monkeypatch.chdir(tmp_path)
    own = ("--model", "mine:model", "--task", "mine:task", "--epochs", 4, "--batch-size", 16, "--backend", "sequential")
    plan = ("--sparsity", 0.6, "--cycles", 1, "--particles", 2, "--quiet")
    monkeypatch.syspath_prepend(tmp_path)
    main([str(argument) for argument in ("run", *own, *plan, "--out", "one")])
    monkeypatch.delitem(sys.modules, "mine")
    job = launched(2, "run", *own, *plan, "--out", "two")
    told = job.communicate()[1]
    assert job.returncode == 0, told
    assert_same_outcome(tmp_path / "one", tmp_path / "two")
