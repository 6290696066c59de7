"""Storages: files and databases that cannot be reached, are damaged, or come from another version."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from threading import Event

import optuna
import pytest
from sqlalchemy import exc

from swamp.errors import SwampError
from swamp.runs.run_progress import Reporter
from swamp.tuning import optuna_studies
from swamp.tuning.optuna_studies import StorageError, open_storage, patiently, shown_storage
from swamp.tuning.trials import open_studies, work_on_trials

sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))

from child import Child, forked

from .tunings import records, started, tiny_tuning, told, worked


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(optuna_studies, "WAITS", (0.0, 0.0, 0.0))


def lost_connection() -> exc.OperationalError:
    return exc.OperationalError("SELECT", {}, Exception("server closed the connection unexpectedly"))


def test_a_call_is_repeated_until_the_storage_is_reached_again():
    failures = [lost_connection(), optuna.exceptions.StorageInternalError("commit"), lost_connection()]
    failures[1].__cause__ = lost_connection()

    def call() -> int:
        if failures:
            raise failures.pop()
        return 7

    with pytest.warns(UserWarning, match=r"the storage there cannot be reached .server closed.*trying again in 0 s"):
        assert patiently(call, "there") == 7
    failures.append(exc.IntegrityError("INSERT", {}, Exception("duplicate key value")))
    with pytest.warns(UserWarning, match="another worker wrote to the storage there at the same moment; trying again"):
        assert patiently(call, "there") == 7


@pytest.mark.slow
def test_a_storage_that_stays_out_of_reach_ends_the_work_and_says_that_nothing_is_lost(tmp_path):
    directory, storage = started(tmp_path / "out", tiny_tuning(), 1, str(tmp_path / "trials.db"))
    study = open_studies(directory, storage)["swamp"]

    class Cut(Reporter):
        """The database goes away while a trial trains."""

        def training(self, at):
            if at.cycle == 1:
                optuna_studies.Trial.report = gone

    def gone(*_: object) -> None:
        raise lost_connection()

    kept = optuna_studies.Trial.report
    try:
        with (
            pytest.warns(UserWarning, match="trying again"),
            pytest.raises(
                StorageError, match=r"cannot be reached: server closed.*tried 4 times.*Nothing is lost"
            ) as told,
        ):
            work_on_trials(directory, storage, lambda *_: Cut(), Event())
    finally:
        optuna_studies.Trial.report = kept
    assert told.value.exit_code == 4
    assert [one.state for one in study.records()] == ["running"]
    assert (directory.path / "swamp" / "trial-0000" / "cycle-01" / "record.json").exists()
    work_on_trials(directory, storage, lambda *_: Reporter(), Event())
    ((number, state, settings, value, cycles),) = told_of(directory, storage)
    assert (number, state, settings) == (0, "finished", {"lr": 0.1})
    assert cycles[3] == value
    undisturbed = worked(tmp_path / "other", tiny_tuning(), trials=1)
    assert told_of(undisturbed, undisturbed.storage) == [(number, state, settings, value, cycles)]


def told_of(directory, storage):
    return told(records(directory, storage))


def test_a_server_that_does_not_answer_is_named_without_its_password():
    with (
        pytest.warns(UserWarning, match="cannot be reached"),
        pytest.raises(StorageError, match=r"postgresql://me:[*]{3}@127.0.0.1:1/x cannot be reached") as told,
    ):
        open_storage("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(told.value)
    assert shown_storage("postgresql://me:secret@db/x") == "postgresql://me:***@db/x"


def test_without_the_driver_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageError, match=r"needs a driver.*pip install 'swamp\[postgresql\]'"):
        open_storage("postgresql://127.0.0.1:1/x")


@pytest.mark.parametrize("version", ["v2.6.0.a", "v99.0.0.a"])
def test_a_database_of_another_version_of_optuna_is_refused(tmp_path, version):
    path = tmp_path / "trials.db"
    open_storage(str(path))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))
        database.execute("UPDATE version_info SET schema_version = 11")
    with pytest.raises(StorageError, match=r"trials.db was made by another version of Optuna.*optuna storage upgrade"):
        open_storage(str(path))


def test_trials_in_another_format_are_refused(tmp_path):
    directory, _ = started(tmp_path / "out", tiny_tuning())
    study = open_studies(directory, directory.storage)["swamp"].study
    study.set_user_attr("swamp", {"format": 2})
    with pytest.raises(StorageError, match=r"has trials in format 2, and this version of swamp reads format 1"):
        open_studies(directory, directory.storage)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("text.db", "is no database of Optuna, or it is damaged"),
        ("text.txt", "is no journal of Optuna, or it is damaged"),
        ("nowhere://x/y", "is no address of a database"),
        ("sqlite://", "would be forgotten"),
        ("://", "is no address of a database"),
        ("text.txt/x", "cannot write the storage"),
        ("text.txt/x.db", "cannot write the storage"),
    ],
)
def test_what_is_no_storage_is_refused(tmp_path, monkeypatch, storage, message):
    monkeypatch.chdir(tmp_path)
    for name in ("text.db", "text.txt"):
        Path(name).write_text("this is a text and no database\n" * 100)
    with pytest.raises(StorageError, match=message):
        open_storage(storage)
    assert Path("text.db").read_text() == Path("text.txt").read_text()


@pytest.mark.parametrize("name", ["trials.db", "trials.journal"])
def test_the_folder_of_a_storage_is_created(name, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna_studies, "WAITS", ())
    assert open_storage(str(tmp_path / "new" / name)).get_all_studies() == []
    assert (tmp_path / "new" / name).exists()


def test_a_damaged_line_of_the_journal_is_named(tmp_path):
    directory, _ = started(tmp_path / "out", tiny_tuning())
    open_studies(directory, directory.storage)
    journal = Path(directory.storage)
    journal.write_bytes(journal.read_bytes()[:-40] + b"\n" * 3)
    with pytest.raises(SwampError, match=r"trials.journal is no journal of Optuna, or it is damaged"):
        open_studies(directory, directory.storage)["swamp"].records()


# A real server


BINARIES = Path("/usr/lib/postgresql/15/bin")
needs_postgresql = pytest.mark.skipif(
    not (BINARIES / "initdb").exists() or (os.getuid() == 0 and not shutil.which("su")),
    reason="PostgreSQL 15 of Debian is not installed",
)


class Server:
    """A PostgreSQL server on a port of its own. Its processes may not be of root."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.address = f"postgresql://swamp@127.0.0.1:{port}/postgres"
        folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        self("initdb", "-D", str(folder / "data"), "-U", "swamp", "--auth=trust", "--no-sync")
        self.start()

    def __call__(self, program: str, *arguments: str) -> None:
        words = [str(BINARIES / program), *arguments]
        if os.getuid() == 0:
            words = ["su", "postgres", "-s", "/bin/sh", "-c", subprocess.list2cmdline(words)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")


@pytest.fixture
def server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Folders of pytest cannot be entered by another user.
    root = Path(tempfile.mkdtemp(prefix="swamp-postgresql-"))
    root.chmod(0o755)
    running = Server(root / "server", port)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(root)


def worker_process(directory, storage: str) -> Child:
    command = ["tune", "--worker", directory.path, "--wait"]
    return forked(command, directory.path / "log", environment={"SWAMP_TUNE_STORAGE": storage})


@pytest.mark.slow
@needs_postgresql
def test_two_workers_share_a_postgresql_server_and_one_may_be_killed(server, tmp_path):
    directory, storage = started(tmp_path / "out", tiny_tuning(), 8, server.address)
    study = open_studies(directory, storage)["swamp"]
    one, other = worker_process(directory, storage), worker_process(directory, storage)
    try:
        while not any(record.worker.endswith(f":{one.pid}") and record.cycles for record in study.records()):
            time.sleep(0.05)
        one.signal(signal.SIGKILL)
        assert other.wait(300) == 0, other.told()
    finally:
        for process in (one, other):
            process.signal(signal.SIGKILL)
            process.wait()
    found = study.records()
    assert [record.number for record in found] == list(range(8))
    assert all(record.ended for record in found)
    assert {record.state for record in found} <= {"finished", "stopped"}
    for record in found:
        run = directory.path / "swamp" / f"trial-{record.number:04d}"
        assert (run / "summary.json").exists() == (record.state == "finished")


@pytest.mark.slow
@needs_postgresql
def test_a_server_that_is_away_for_a_moment_is_waited_for(server, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna_studies, "WAITS", (0.5,) * 20)
    directory, storage = started(tmp_path / "out", tiny_tuning(), 2, server.address)
    left = [2]

    class Restarts(Reporter):
        """The server ends within the first trial, and is back a little later."""

        def finished(self, cycle):
            left[0] -= 1
            if left[0] == 0:
                server.stop()
                threading.Timer(1.0, server.start).start()

    with pytest.warns(UserWarning, match="cannot be reached"):
        work_on_trials(directory, storage, lambda *_: Restarts(), Event())
    undisturbed = worked(tmp_path / "other", tiny_tuning(), trials=2)
    assert told_of(directory, storage) == told_of(undisturbed, undisturbed.storage)
