"""swamp study from end to end, with real worker processes."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from threading import Event

import pytest

from swamp.cli.workers import StudyJob, local_workers, shares, submit
from swamp.errors import SwampError
from swamp.recipes import STUDIES, configuration
from swamp.runs.run_progress import Reporter
from swamp.runs.study import Study
from swamp.runs.study_queue import StudyDirectory, work

from .command import fork_workers, swamp

STUDY = """
recipe = "digits-mlp"
[settings]
model = "mlp-16"
sparsity = 0.75
swa_fraction = 0.5
examples = 640
backend = "sequential"
snapshot_seconds = 0.05
barrier_threshold = 1
epochs = {epochs}
[grid]
method = ["imp", "swamp"]
seed = [0, 1]
"""


def written(folder: Path, *, epochs: int = 4, more: str = "") -> Path:
    path = folder / "tiny.toml"
    path.write_text(STUDY.format(epochs=epochs) + more)
    return path


def meanwhile(act) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def wait_for(condition):
    while not (found := condition()):
        time.sleep(0.01)
    return found


def owner(out: Path, name: str) -> int:
    """Process that works on a run, 0 for none and for one that has its lock and has not yet written who it is."""
    process = StudyDirectory(out, {}).holder(name).rpartition(":")[2]
    return int(process) if process.isdigit() else 0


def measured(out: Path) -> dict[str, object]:
    return {path.parent.name: json.loads(path.read_text())["test"] for path in out.glob("*/summary.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A study of four runs by one worker that nobody disturbed, in this process."""
    folder = tmp_path_factory.mktemp("study")
    assert swamp("study", written(folder), "--out", folder / "out", "--workers", 0, "--quiet") == 0
    work(StudyDirectory.open(folder / "out"), lambda *run: Reporter(), Event())
    return folder / "out"


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_when_one_of_two_workers_is_killed_the_other_does_its_run_and_the_results_are_the_same(
    finished, tmp_path, capsys, monkeypatch
):
    fork_workers(monkeypatch)
    out = tmp_path / "out"
    names = ("imp-seed0", "imp-seed1", "swamp-seed0", "swamp-seed1")

    def kill() -> None:
        wait_for((out / "imp-seed0" / "ticket.safetensors").exists)
        os.kill(wait_for(lambda: max(owner(out, name) for name in names)), signal.SIGKILL)

    killed = meanwhile(kill)
    assert swamp("study", written(tmp_path), "--out", out, "--workers", 2, "--json") == 0
    killed.join()
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    told = json.loads(printed.out)
    assert (told["finished"], told["failed"], told["running"], told["waiting"]) == (4, 0, 0, 0)
    assert {name: run["test"] for name, run in told["runs"].items()} == measured(finished)
    assert "was killed by signal 9" in printed.err


@pytest.mark.slow
def test_a_signal_to_the_parent_stops_the_workers_and_prints_how_to_resume(tmp_path, capsys):
    out, study = tmp_path / "out", written(tmp_path, epochs=500)
    asked = meanwhile(lambda: (wait_for(lambda: owner(out, "imp-seed0")), os.kill(os.getpid(), signal.SIGTERM)))
    assert swamp("study", study, "--out", out) == 143
    asked.join()
    assert "Run the same command to continue" in capsys.readouterr().err
    assert not owner(out, "imp-seed0")
    assert not list(out.glob(".workers/*"))


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_study_ends_with_the_table_it_asks_for_also_by_its_folder(finished, tmp_path, capsys):
    out, study = tmp_path / "out", tmp_path / "again.toml"
    shutil.copytree(finished, out)
    view = "\n[compare]\nmetric = 'nll'\nbaseline = 'best'\nsparsities = [0.5]\n"
    study.write_text(written(tmp_path).read_text() + view)
    for which in ((study, "--out", out), (out,)):
        assert swamp("study", *which) == 0
        told = capsys.readouterr().out
        assert "NLL" in told
        assert "Difference to each sparsity's best" in told
        assert "50.00" in told
        assert "75.00" not in told


@pytest.mark.slow
def test_a_finished_study_starts_no_worker_and_prints_its_result(finished, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a worker was started"))
    assert swamp("study", finished, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["finished"] == 4
    assert [Path(path).name for path in told["comparison"]] == [
        *(f"compare.{end}" for end in ("csv", "json", "png", "svg")),
        "comparison.md",
    ]
    assert swamp("study", finished, "--workers", 0, "--wait") == 0
    assert "4 finished" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_compare_takes_a_study_by_its_folder_or_everything_in_it(finished, tmp_path, capsys):
    for paths in ([finished], sorted(finished.glob("[!.]*"))):
        assert swamp("compare", *paths, "--out", tmp_path, "--json") == 0
        assert len(json.loads(capsys.readouterr().out)["labels"]) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_failed_run_makes_exit_code_3_and_is_tried_again_only_where_asked(finished, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    study = written(tmp_path, more='[runs.wild]\nlr = 1e30\nticket_epochs = 0\non_divergence = "stop"\n')
    assert swamp("study", study, "--out", out, "--workers", 0, "--quiet") == 0
    work(StudyDirectory.open(out), lambda *run: Reporter(), Event())
    for options in ([], ["--json"]):
        assert swamp("study", study, "--out", out, *options) == 3
        printed = capsys.readouterr()
        assert re.search(r"wild.*failed.*--clip 1", printed.out, re.DOTALL)
        assert "1 of 5 runs failed: wild" in printed.err
    assert swamp("study", study, "--out", out, "--retry", "--workers", 0, "--quiet") == 0
    assert not (out / "wild" / "failed.json").exists()


def test_the_worker_that_holds_a_run_is_printed(finished, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "swamp-seed1" / "summary.json").unlink()
    with StudyDirectory.open(out).claimed("swamp-seed1"):
        assert swamp("study", out, "--workers", 0) == 0
    assert re.search(rf"swamp-seed1: worker \S+:{os.getpid()} \(24 of 24 epochs\)", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demmo"], "unknown study 'demmo'. Did you mean demo"),
        (["none.toml"], "cannot read the study none.toml"),
        (["demo", "--workers", "-1"], "workers must be 0 or more"),
        (["demo", "--submit", "slurm"], "needs sbatch, which is not installed here"),
        (["--worker", "nowhere"], "nowhere holds no study"),
    ],
)
def test_bad_input_gets_a_clear_message_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    if "slurm" in arguments:
        pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("os.read", lambda *_: b"")
    assert swamp("study", *arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_without_workers_nothing_is_written(tmp_path, capsys):
    with local_workers("study", tmp_path / "of-others", 0, [], wait=False):
        pass
    assert not any(tmp_path.iterdir())
    StudyDirectory.join(tmp_path / "s", {})
    assert swamp("study", tmp_path / "s", "--out", tmp_path / "t") == 2
    assert "is the folder of a study, which cannot have another --out" in capsys.readouterr().err


def test_without_submitit_the_message_says_how_to_get_it(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SwampError, match=re.escape("pip install 'swamp[slurm]'")):
        submit(StudyDirectory.open(finished), "local", 1, [], wait=False)


# submitit leaves the process that starts the job to itself.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_submitted_worker_does_the_runs_and_is_queued_again_when_its_time_is_up(finished, tmp_path, capsys):
    pytest.importorskip("submitit")
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "imp-seed0" / "summary.json").unlink()
    assert swamp("study", out, "--submit", "local", "--job", "timeout_min=9", "--wait", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    gc.collect()
    assert (told["finished"], len(told["jobs"])) == (4, 1)
    again = StudyJob(out, False).checkpoint()
    assert again.function == StudyJob(out, False)
    for option, message in (
        ("timeout", "takes KEY=VALUE"),
        ("nodez=1", "invalid --job for the executor of submitit.*nodez"),
    ):
        assert swamp("study", out, "--submit", "local", "--job", option) == 2
        assert re.search(message, capsys.readouterr().err, re.DOTALL)


def test_workers_of_one_machine_share_its_cores_and_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert shares(["auto"], 2, 3) == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "4"}
    assert shares(["auto"], 1, 16) == {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "7"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert shares(["auto", "cuda:1"], 0, 2) == {}


def test_the_example_of_the_page_can_be_resolved(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "howto" / "study.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    for number, text in enumerate(examples):
        (tmp_path / f"{number}.toml").write_text(text)
        assert swamp("study", tmp_path / f"{number}.toml", "--out", tmp_path / str(number), "--workers", 0) == 0


@pytest.mark.slow_cases("path0", "path1")
@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "benchmarks" / "studies").iterdir()))
def test_the_studies_of_the_results_can_be_resolved(path):
    runs = Study.load(path).configurations(configuration, path.name)
    assert {config.plan.seed for config in runs.values()} >= {0, 1}
    # Those that are looked into need their particles.
    assert {config.keep_checkpoints for config in runs.values()} == {
        "particles" if path.name.startswith("why") else "means"
    }


def test_ready_made_studies_are_listed(capsys):
    assert swamp("list", "studies", "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["studies"]) == list(STUDIES)
