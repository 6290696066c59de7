"""Runs of several processes: started by torchrun, which takes seconds, or forked from this process."""

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from swamp.algorithms import Plan
from swamp.cli import main
from swamp.cli.session import Err, Out
from swamp.runs.config import RunConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))

from child import Child, forked

from .conftest import assert_same_outcome, go, go_on, tiny

LINE = re.compile(r"^swamp: ", re.MULTILINE)


def launched(ranks: int, *arguments: object, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options]
    return subprocess.Popen(
        [*command, "-m", "swamp", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ranks_of(ranks: int, log: Path, *arguments: object) -> list[Child]:
    """Processes with the environment that torchrun gives them, which import nothing anew; `log` has their output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    gc.collect()
    # Process groups of earlier tests lose their threads in the fork: a child that collected them would crash.
    gc.freeze()
    each = [
        {name: str(value) for name, value in {**job, "RANK": rank, "LOCAL_RANK": rank}.items()} for rank in range(ranks)
    ]
    started = [forked(arguments, log, _print_where_the_rank_does, environment) for environment in each]
    gc.unfreeze()
    return started


def _print_where_the_rank_does() -> None:
    Out.file = Err.file = None  # `forked` sets both, and the output of rank 1 would not be discarded


def eventually(true: Callable[[], object], running: Callable[[], bool]) -> None:
    while not true():
        assert running()
        time.sleep(0.01)


def stopped(ranks: list[Child]) -> None:
    """What torchrun does when it is asked to stop."""
    for rank in ranks:
        rank.signal(signal.SIGTERM)
    assert all(rank.wait() for rank in ranks)


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
    run, log = tmp_path / "run", tmp_path / "log"
    ranks = ranks_of(3, log, "run", "--config", reference / "config.json", "--out", run)
    eventually(training_of(run, 1), lambda: all(rank.code() is None for rank in ranks))
    ranks[2].signal(signal.SIGKILL)
    assert [rank.wait() for rank in ranks] == [4, 4, -signal.SIGKILL]
    told = log.read_text()
    assert re.search(rf"swamp: rank 2 \(host \S+, pid {ranks[2].pid}\) died\. .* swamp resume {run}", told)
    assert len(LINE.findall(told)) == 1
    finished = {path: path.stat().st_mtime_ns for path in run.glob("cycle-00/*")}
    assert [rank.wait() for rank in ranks_of(2, tmp_path / "log", "resume", run)] == [0, 0]
    assert len(json.loads((run / "summary.json").read_text())["cycles"]) == 2
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert_same_outcome(reference, run)
    assert not list(run.rglob("unfinished-*"))


@pytest.mark.slow
def test_with_restarts_the_job_continues_after_rank_0_is_killed(reference, tmp_path):
    run = tmp_path / "run"
    job = launched(
        2, "run", "--config", reference / "config.json", "--out", run, "--quiet", options=("--max-restarts=1",)
    )
    eventually(training_of(run, 0), lambda: job.poll() is None)
    killed = pids(run)[0]
    os.kill(killed, signal.SIGKILL)
    told = job.communicate()[1]
    assert job.returncode == 0, told
    assert f"pid {killed}) died." in told
    assert_same_outcome(reference, run)


@pytest.mark.slow
def test_after_a_signal_all_ranks_save_and_one_process_can_resume(reference, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    ranks = ranks_of(2, log, "run", "--config", reference / "config.json", "--out", run)
    eventually(lambda: len(training_of(run, 0)()) == 2, lambda: all(rank.code() is None for rank in ranks))
    stopped(ranks)
    told = log.read_text()
    assert LINE.findall(told) == ["swamp: "]
    # By whichever rank heard of the signal first: "swamp: stopped." or "swamp: rank 1 (...) was stopped."
    assert f"stopped. Continue with: swamp resume {run}" in told
    go_on(run)
    assert_same_outcome(reference, run)


@pytest.mark.slow
def test_a_sharded_run_can_be_resumed_by_one_process(reference, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    options = ("--particles", 1, "--epochs", 30, "--shard", "--out", run)
    ranks = ranks_of(2, log, "run", "--config", reference / "config.json", *options)
    eventually(training_of(run, 0), lambda: all(rank.code() is None for rank in ranks))
    stopped(ranks)
    told = log.read_text()
    # By whichever rank heard of the signal first: "swamp: stopped." or "swamp: rank 1 (...) was stopped."
    assert f"stopped. Continue with: swamp resume {run}" in told
    assert [record["sparsity"] for record in go_on(run)["cycles"]] == [0, 0.5]


@pytest.mark.slow
def test_a_refused_configuration_is_printed_once_and_all_ranks_exit_with_code_2(tmp_path):
    ranks = ranks_of(2, tmp_path / "log", "run", "digits-mlp", "--model", "nothing")
    assert [rank.wait() for rank in ranks] == [2, 2]
    assert LINE.findall((tmp_path / "log").read_text()) == ["swamp: "]


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
    ranks = ranks_of(2, tmp_path / "log", "run", *own, *plan, "--out", "two")
    assert [rank.wait() for rank in ranks] == [0, 0], (tmp_path / "log").read_text()
    assert_same_outcome(tmp_path / "one", tmp_path / "two")
