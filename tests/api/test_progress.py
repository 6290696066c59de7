"""Progress of a call from Python: bars where they can be drawn, a line every 30 s elsewhere, nothing unless asked."""

import io
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console
from tests.api.conftest import OPTIONS, examples, network

import swamp
from swamp.api import progress, pruning
from swamp.api.pace import Pace


def shown(monkeypatch, *, terminal: bool, **changes) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=140, _environ={"TERM": "xterm"})
    monkeypatch.setattr(pruning, "live_progress", lambda: progress.LiveReporter(console))
    monkeypatch.setattr(progress, "_REDRAW_SECONDS", 0)
    swamp.prune(network(), examples(), progress=True, backend="sequential", **(OPTIONS | changes))
    return file.getvalue()


def test_nothing_is_printed_unless_asked(capfd):
    swamp.prune(network(), examples(), backend="sequential", **OPTIONS)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kept", [False, True])
def test_a_terminal_shows_cycle_particle_rate_and_time_left_of_the_run(monkeypatch, tmp_path, kept):
    text = shown(monkeypatch, terminal=True, **({"out": tmp_path / "run"} if kept else {}))
    for part in (
        "particles of cycle 2",
        "steps/s",
        "about 0 s left",
        "2/3",
        "method swamp: 3 cycles",
        "75.00 %",
    ):
        assert part in text


def test_elsewhere_a_line_has_step_loss_rate_and_time_left(monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    lines = shown(monkeypatch, terminal=False).splitlines()
    pattern = r"cycle 1, particle 2 of 2, step 7 of 16, loss 0\.\d+, [\d,]+ steps/s, about \d+ s left"
    assert any(re.fullmatch(pattern, line) for line in lines)
    assert sum(line.startswith("    2   75.00 %") for line in lines) == 1


def test_elsewhere_no_line_is_printed_before_30_seconds(monkeypatch):
    assert "loss" not in shown(monkeypatch, terminal=False)


def test_a_notebook_redraws_one_output(monkeypatch, capsys):
    drawings: list[str] = []

    def display(drawing, display_id):
        assert display_id
        drawings.append(drawing)
        return SimpleNamespace(update=drawings.append)

    python, shell = ModuleType("IPython"), ModuleType("IPython.display")
    python.get_ipython = lambda: SimpleNamespace(kernel=object())
    shell.display, shell.HTML = display, str
    monkeypatch.setitem(sys.modules, "IPython", python)
    monkeypatch.setitem(sys.modules, "IPython.display", shell)
    monkeypatch.setattr(progress, "_REDRAW_SECONDS", 0)
    swamp.prune(network(), examples(), progress=True, backend="sequential", **OPTIONS)
    assert "<pre>cycles" in drawings[3]
    assert any("particles of cycle 1" in drawing and "steps/s" in drawing for drawing in drawings)
    assert drawings[-1] == ""
    assert "75.00 %" in capsys.readouterr().err


def test_the_time_left_counts_what_an_earlier_session_did():
    pace = Pace(total=1000)
    pace.finished(SimpleNamespace(cost=SimpleNamespace(steps=400)))
    for step, now in ((1, 10.0), (11, 11.0)):
        pace.step(1, 0, 2, step, 100, now)
    # Steps are reported one by one; 1 and 11 count as 2 steps of a session, and 10 steps a second are taken.
    assert pace.done == 411
    assert pace.rate == 10
    assert pace.seconds_left == pytest.approx(58.9)


def test_retrain_shows_its_progress(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(pruning, "live_progress", lambda: progress.LiveReporter(Console(file=file, width=140)))
    sparse = swamp.prune(network(), examples(), backend="sequential", **OPTIONS)
    ticket = swamp.Ticket(network().state_dict(), 0)
    how = {"training": OPTIONS["training"], "barrier_threshold": 1.0, "backend": "sequential", "particles": 2}
    swamp.retrain(network(), examples(), ticket, sparse.mask, progress=True, **how)
    assert "75.00 %" in file.getvalue()
