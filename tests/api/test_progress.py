"""Progress of a call from Python: bars where they can be drawn, a line every 30 s elsewhere, nothing unless asked."""

import io
import re
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
from tests.api.conftest import OPTIONS, examples, network

import swamp
from swamp.api import display, progress, pruning
from swamp.api.pace import Pace
from swamp.console import plain_console
from swamp.runs.overview import Overview
from swamp.runs.run_progress import TrainingStep


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch, *, terminal: bool, **changes) -> str:
    file = Terminal() if terminal else io.StringIO()
    console = plain_console(file=file, width=140, _environ={"TERM": "xterm"})
    reporters: list[progress.LiveReporter] = []

    def reporter() -> progress.LiveReporter:
        reporters.append(Redrawn(console) if terminal else progress.LiveReporter(console))
        return reporters[0]

    monkeypatch.setattr(pruning, "live_progress", reporter)
    swamp.prune(network(), examples(), progress=True, backend="sequential", **(OPTIONS | changes))
    return file.getvalue()


class Redrawn(progress.LiveReporter):
    """Redraws at every step and stage, not four times a second."""

    def training(self, at) -> None:
        super().training(at)
        self.display.screen.live.refresh()

    def stage(self, *arguments, **named) -> None:
        super().stage(*arguments, **named)
        self.display.screen.live.refresh()


def test_nothing_is_printed_unless_asked(capfd):
    swamp.prune(network(), examples(), backend="sequential", **OPTIONS)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kept", [False, True])
def test_a_terminal_shows_cycle_particle_rate_and_time_left_of_the_run(monkeypatch, tmp_path, kept):
    text = shown(monkeypatch, terminal=True, **({"out": tmp_path / "run"} if kept else {}))
    for part in (
        "checking the network and the data",
        "cycle 2, training particle 1 of 2",
        "evaluating cycle 2",
        "steps/s",
        "about 0 s left",
        "2/3",
        "method swamp: 3 cycles",
        "75.00 %",
    ):
        assert part in text


def test_elsewhere_a_line_has_step_loss_rate_and_time_left(monkeypatch):
    monkeypatch.setattr(display, "LOG_SECONDS", 0)
    lines = shown(monkeypatch, terminal=False).splitlines()
    pattern = r"cycle 1, training particle 2 of 2, step 7 of 16, loss 0\.\d+, [\d,]+ steps/s, about \d+ s left"
    assert any(re.fullmatch(pattern, line) for line in lines)
    assert sum(line.startswith("    2   75.00 %") for line in lines) == 1


def test_elsewhere_no_line_is_printed_before_30_seconds(monkeypatch):
    assert "loss" not in shown(monkeypatch, terminal=False)


def reports(seconds: list[float]) -> tuple[progress.LiveReporter, io.StringIO]:
    """A reporter without a terminal whose clock gives these seconds; the last one repeats."""
    file = io.StringIO()
    clock = lambda: seconds.pop(0) if len(seconds) > 1 else seconds[0]  # noqa: E731
    reporter = progress.LiveReporter(plain_console(file=file, width=60), clock=clock)
    reporter.started(Overview("", (400,), 0))
    return reporter, file


def test_a_log_has_one_line_every_30_seconds_with_step_loss_rate_and_time_left():
    # Steps 1 to 400, one each second from second 1 on.
    reporter, file = reports([0.0, 0.0, *map(float, range(1, 401))])
    for step in range(1, 101):
        reporter.training(TrainingStep(0, 0, 1, step, 400, lambda: 0.25))
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("cycle  sparsity")
    assert lines[1] == "about 6 min 29 s left: 389 of 400 steps, and evaluation"
    assert lines[2:] == [
        f"cycle 0, training particle 1 of 1, step {step} of 400, loss 0.25, 1 steps/s, about {left} left"
        for step, left in ((30, "6 min 10 s"), (60, "5 min 40 s"), (90, "5 min 10 s"))
    ]


def test_a_log_names_the_stage_when_no_step_comes_for_35_seconds():
    seconds = [0.0]
    reporter, file = reports(seconds)
    reporter.stage("evaluating cycle 3")
    for seconds[0] in (29.0, 34.0, 36.0, 40.0, 70.0, 72.0):
        reporter.display.screen.tick()
    assert file.getvalue().splitlines()[1:] == ["evaluating cycle 3 (36 s)", "evaluating cycle 3 (1 min 12 s)"]


@pytest.mark.slow
def test_the_lines_of_a_long_stage_come_without_a_step():
    file = io.StringIO()
    now = [0.0]
    with progress.LiveReporter(plain_console(file=file), clock=lambda: now[0]) as reporter:
        reporter.stage("compiling the step")
        now[0] = 40.0
        for _ in range(100):
            if file.getvalue():
                break
            time.sleep(0.1)
    assert file.getvalue() == "compiling the step (40 s)\n"


def test_forced_colours_draw_no_bars_into_a_log(monkeypatch):
    file = io.StringIO()
    console = plain_console(file=file, _environ={"FORCE_COLOR": "1", "TERM": "xterm"})
    assert not progress.LiveReporter(console).display.has_bars


@pytest.mark.parametrize("width", [80, 120])
def test_the_bars_fit_a_terminal_at_large_numbers(width):
    file = Terminal()
    reporter = progress.LiveReporter(plain_console(file=file, width=width, _environ={"TERM": "xterm"}))
    shown = reporter.display
    shown.expect(Pace((1_000_000,) * 99, 10_000))
    for step in range(1, 20):
        shown.pace.step(12, 0, step, 100_000, 0.001 * step)
    shown.at = TrainingStep(12, 0, 16, 19, 100_000)
    console = plain_console(file=io.StringIO(), width=width)
    console.print(shown.screen.drawing())
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 4
    assert all(len(line) <= width for line in lines)
    assert "10,019/99,010,000" in lines[3]
    assert lines[3].rstrip().endswith("1,000 steps/s")


@pytest.mark.parametrize("seconds", [0, 3600])
def test_a_notebook_redraws_one_output_and_every_stage(seconds, monkeypatch, capsys):
    drawings: list[str] = []

    def show(drawing, display_id):
        assert display_id
        drawings.append(drawing)
        return SimpleNamespace(update=drawings.append)

    python, shell = ModuleType("IPython"), ModuleType("IPython.display")
    python.get_ipython = lambda: SimpleNamespace(kernel=object())
    shell.display, shell.HTML = show, str
    monkeypatch.setitem(sys.modules, "IPython", python)
    monkeypatch.setitem(sys.modules, "IPython.display", shell)
    monkeypatch.setattr(display, "_NOTEBOOK_SECONDS", seconds)
    swamp.prune(network(), examples(), progress=True, backend="sequential", **OPTIONS)
    assert drawings[0] == "<pre>checking the network and the data</pre>"
    assert any("evaluating cycle 1" in drawing for drawing in drawings)
    steps = any("cycle 1, training particle 2 of 2" in drawing and "steps/s" in drawing for drawing in drawings)
    assert steps == (seconds == 0)
    assert drawings[-1] == ""
    assert "75.00 %" in capsys.readouterr().err


def test_retrain_shows_its_progress(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(pruning, "live_progress", lambda: progress.LiveReporter(plain_console(file=file, width=140)))
    sparse = swamp.prune(network(), examples(), backend="sequential", **OPTIONS)
    ticket = swamp.Ticket(network().state_dict(), 0)
    how = {"training": OPTIONS["training"], "barrier_threshold": 1.0, "backend": "sequential", "particles": 2}
    swamp.retrain(network(), examples(), ticket, sparse.mask, progress=True, **how)
    assert "75.00 %" in file.getvalue()


def test_a_warning_of_a_run_names_the_line_that_called_swamp():
    with pytest.warns(UserWarning, match="barrier between particles") as caught:
        swamp.prune(network(), examples(), **(OPTIONS | {"barrier_threshold": 0.0}))
    assert {one.filename for one in caught} == {__file__}
