"""Each tracker with its own library: what a run logged is read back. `make trackers` runs all of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))

from child import forked, started

ROWS = {"loss/particle-0", "lr/particle-0", "sparsity", "test/accuracy", "barrier/pair", "cost/flops", "total/seconds"}
RUN = ["digits-mlp", "--epochs", "2", "--cycles", "3", "--particles", "2", "--examples", "256", "--quiet"]
OFFLINE = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "NO_COLOR": "1"}


def environment(folder):
    own = {"TRACKIO_DIR": str(folder / "trackio"), "WANDB_DATA_DIR": str(folder), "WANDB_CACHE_DIR": str(folder)}
    return {**os.environ, **OFFLINE, **own, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def swamp(folder, *arguments, **changes):
    """The command in a session of its own, where Ctrl-C also reaches the processes of a tracker."""
    command = ["env", "-C", folder, sys.executable, "-m", "swamp", *arguments]
    return started(command, folder / "log", environment(folder) | changes)


def forked_swamp(folder, *arguments):
    """The command without a new interpreter: for a library without threads and processes of its own."""
    return forked(arguments, folder / "log", lambda: (os.setsid(), os.chdir(folder)), environment(folder))


def finished(process, code=0):
    assert process.wait() == code, process.told()
    return process.told()


def run(folder, name, swamp=swamp):
    """A run that is interrupted after its first cycle, as Ctrl-C does, and continued; returns the state of tracking."""
    process = swamp(folder, "run", *RUN, "--track", name, "--out", "run", "--epochs", "40")
    while not (folder / "run" / "cycle-00" / "record.json").exists():
        assert process.code() is None, process.told()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert "lost" not in finished(process, code=130)
    assert "lost" not in finished(swamp(folder, "resume", "run", "--quiet"))
    state = json.loads((folder / "run" / "tracking" / "state.json").read_text())[name]
    assert state["cycles"] == 4
    return state["id"]


@pytest.mark.slow
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, "tensorboard", forked_swamp)
    events = EventAccumulator(str(tmp_path / "run" / "tracking"))
    events.Reload()
    assert {*events.Tags()["scalars"]} >= ROWS
    assert [event.value for event in events.Scalars("cycle")] == [0, 1, 2, 3]
    assert {*events.Tags()["images"]} == {"figures/accuracy", "figures/particles", "figures/cost"}
    (text,) = events.Tensors("configuration")
    assert b'"plan.method": "swamp"' in text.tensor_proto.string_val[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_mlflow(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    id = run(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("swamp").experiment_id])
    assert (found.info.run_id, found.info.status, found.info.run_name) == (id, "FINISHED", "run")
    assert {*found.data.metrics} >= ROWS
    assert found.data.params["plan.method"] == "swamp"
    assert [metric.value for metric in client.get_metric_history(id, "cycle")] == [0, 1, 2, 3]
    artifacts = next(tmp_path.glob(f"mlruns/*/{id}/artifacts"))
    assert (artifacts / "figures" / "accuracy.png").exists()
    assert (artifacts / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_trackio(tmp_path):
    pytest.importorskip("trackio")
    run(tmp_path, "trackio")
    code = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("swamp")
print(json.dumps([run.name, SQLiteStorage.get_logs("swamp", run.name)], default=str))
"""
    read = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    name, rows = json.loads(read.stdout.splitlines()[-1])
    assert name == "run"
    assert {key for row in rows for key in row} >= ROWS
    assert [row["cycle"] for row in rows if "cycle" in row] == [0, 1, 2, 3]


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb")
    id = run(tmp_path, "wandb")
    sessions = sorted(tmp_path.glob(f"run/tracking/wandb/offline-run-*/run-{id}.wandb"))
    assert len(sessions) == 2  # `wandb sync` appends the second to the first, as both have one id
    records = [record for file in sessions for record in wandb_records(file)]
    rows = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in records if record.WhichOneof("record_type") == "history"]  # fmt: skip
    assert {key for row in rows for key in row} >= ROWS
    assert [row["cycle"] for row in rows if "cycle" in row] == [0, 1, 2, 3]
    assert all("step" in row for row in rows if "loss/particle-0" in row)
    (artifact,) = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    assert artifact.type == "model"
    exits = [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]
    assert exits == [1, 0]


def wandb_records(file):
    """The records of an offline run: blocks of 32 KiB with checksum, length and kind of each part (LevelDB's log)."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.mark.slow
def test_a_dead_server_ends_no_run(tmp_path):
    pytest.importorskip("mlflow")
    process = swamp(
        tmp_path, "run", *RUN, "--track", "mlflow", "--out", "run", MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
    )  # fmt: skip
    said = " ".join(finished(process).split())
    assert "tracker mlflow is lost, the run continues without it" in said
    assert (tmp_path / "run" / "summary.json").exists()
