"""swamp analyze, report, figure and watch, with analyses that record their calls."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from swamp.analysis import ANALYSES
from swamp.analysis.analysis_tasks import AnalysisTask
from swamp.api import display
from swamp.api.display import LogLines
from swamp.cli import analyze
from swamp.errors import SwampError

from .command import swamp

TINY = ["digits-mlp", "--epochs", "1", "--model", "mlp-16", "--sparsity", "0.5", "--barrier-threshold", "1"]
TINY += ["--examples", "320", "--device", "cpu", "--backend", "sequential", "--quiet"]


@pytest.fixture
def run(tmp_path):
    assert swamp("run", *TINY, "--out", tmp_path / "run") == 0
    return tmp_path / "run"


@pytest.fixture
def asked():
    """Two analyses; the first task of the second one fails. Yields the keys of the computed tasks."""
    done: list[str] = []

    def task(key, fail=False):
        def work():
            done.append(key)
            if fail:
                raise SwampError("particles were not kept")
            return {"cycle": 0, "sparsity": 0.0}

        return AnalysisTask(key, work)

    def cheap(run_data, settings):
        """Answers at once."""
        return [task("cheap/cycle-00"), task("cheap/cycle-01")]

    def dear(run_data, settings):
        """Takes long."""
        return [task("dear/cycle-00", fail=True), task("dear/cycle-01")]

    registered = dict(ANALYSES)
    ANALYSES.clear()
    ANALYSES.update(cheap=cheap, dear=dear)
    yield done
    ANALYSES.clear()
    ANALYSES.update(registered)


def test_tasks_are_computed_once_and_a_task_that_fails_is_skipped(run, asked, capsys):
    assert swamp("analyze", run, "--json") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["computed"], found["kept"]) == (3, 0)
    assert found["skipped"] == {"dear/cycle-00": "particles were not kept"}
    assert "skipped dear/cycle-00: particles were not kept" in printed.err
    assert asked == ["cheap/cycle-00", "cheap/cycle-01", "dear/cycle-00", "dear/cycle-01"]
    asked.clear()
    assert swamp("analyze", run) == 0
    assert asked == ["dear/cycle-00"]
    assert "0 computed, 3 read from disk, 1 skipped." in capsys.readouterr().out
    assert swamp("analyze", run, "--examples", "50", "--quiet") == 0
    assert len(asked) == 5


def test_a_log_says_what_a_long_task_is(run, asked, monkeypatch, capsys):
    class Due(LogLines):
        def open(self) -> None:
            opened.append(self)

    def work():
        opened[0].tick()
        return {"cycle": 0, "sparsity": 0.0}

    opened: list[LogLines] = []
    monkeypatch.setattr(analyze, "LogLines", Due)
    monkeypatch.setattr(display, "LOG_SECONDS", -60.0)  # a line is always due
    ANALYSES["cheap"] = lambda run_data, settings: [AnalysisTask("cheap/cycle-00", work)]
    assert swamp("analyze", run, "--only", "cheap") == 0
    assert "cheap/cycle-00 (0 s), 0 of 1 tasks finished" in capsys.readouterr().out
    opened.clear()
    ANALYSES["cheap"] = lambda run_data, settings: [AnalysisTask("cheap/cycle-01", dict)]
    swamp("analyze", run, "--only", "cheap", "--quiet")
    assert not opened


def test_only_selects_analyses_and_an_unknown_name_suggests_the_nearest(run, asked, capsys):
    assert swamp("analyze", run, "--only", "dear", "cheap", "--quiet") == 0
    assert asked[0] == "cheap/cycle-00"
    assert swamp("analyze", run, "--only", "chep") == 2
    assert "unknown analysis 'chep'. Did you mean cheap?" in capsys.readouterr().err
    assert swamp("analyze", run / "nothing") == 2


def test_a_signal_stops_after_the_current_task_and_the_command_continues(run, asked, monkeypatch, capsys):
    first = ANALYSES["cheap"]

    def stopped(run_data, settings):
        one, two = first(run_data, settings)
        yield AnalysisTask(one.key, lambda: os.kill(os.getpid(), signal.SIGTERM) or one.compute())
        yield two

    monkeypatch.setitem(ANALYSES, "cheap", stopped)
    assert swamp("analyze", run, "--only", "cheap") == 143
    assert f"stopped after 1 of 2 tasks. To continue: swamp analyze {run} --only cheap" in capsys.readouterr().err
    assert asked == ["cheap/cycle-00"]
    monkeypatch.setitem(ANALYSES, "cheap", first)
    asked.clear()
    assert swamp("analyze", run, "--only", "cheap") == 0
    assert asked == ["cheap/cycle-01"]


def test_report_and_figure_write_the_files_they_name(run, tmp_path, capsys):
    capsys.readouterr()
    assert swamp("report", run, "-o", tmp_path / "r.html", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"report": str(tmp_path / "r.html"), "bytes": (tmp_path / "r.html").stat().st_size}
    assert swamp("figure", run, "--which", "particles", "-o", tmp_path / "p.svg") == 0
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    assert swamp("figure", run, "--which", "acuracy") == 2
    assert "Did you mean accuracy" in capsys.readouterr().err
    assert swamp("figure", run, "--which", "hull", "-o", tmp_path / "h.pdf") == 2
    assert "--only hull" in capsys.readouterr().err
    assert swamp("figure", run, "--format", "svg", "-o", tmp_path / "h.png") == 2
    assert "--format is svg, and" in capsys.readouterr().err
    assert swamp("figure", run, "-o", tmp_path / "h.gif") == 2
    assert swamp("report") == 2
    assert swamp("watch", run, "--port", "70000") == 2
    assert swamp("watch", run / "nothing") == 2


@pytest.mark.slow
def test_watch_serves_until_interrupted(run):
    command = [sys.executable, "-m", "swamp", "watch", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        url = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert b"data-live" in answer.read()
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - began < 10
        assert process.stderr.read() == ""
