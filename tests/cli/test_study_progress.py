"""Progress of a study on the terminal."""

import io

from swamp.cli.study_progress import StudyProgress, counted, failures
from swamp.console import plain_console
from swamp.runs.study_queue import RunState, StudyDirectory


class Summaries(StudyDirectory):
    """A study with the same summary for each finished run, except for the metric."""

    def summary(self, name):
        return {"sparsity": 0.9, "seconds": 12.0, "test": {"accuracy": 0.8} if name == "a" else {"loss": 0.25}}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(tmp_path, looks, *, terminal: bool, seconds: float = 1.0) -> str:
    """What is printed at these looks, which are `seconds` apart."""
    file, now = Terminal() if terminal else io.StringIO(), [0.0]
    console = plain_console(file=file, width=120, _environ={"TERM": "xterm"})
    with StudyProgress(Summaries(tmp_path, {}), console, clock=lambda: now[0]) as watch:
        for states in looks:
            watch.show(states)
            now[0] += seconds
    return file.getvalue()


WAITING = [RunState(name, "waiting", total=10) for name in "abc"]
RUNNING = [RunState("a", "finished", done=10, total=10), RunState("b", "running", "host:7", 5, 10), WAITING[2]]
OVER = [RUNNING[0], RunState("b", "finished", done=10, total=10), RunState("c", "failed", error="Trace\nbad [thing]")]


def test_a_person_sees_runs_workers_rate_and_time_left(tmp_path):
    text = shown(tmp_path, [WAITING, RUNNING], terminal=True)
    assert "no rate yet" in text
    for part in ("1 finished, 1 running, 1 waiting", "host:7", "5/10 epochs", "epochs/s, about ", " left"):
        assert part in text


def test_many_running_runs_are_cut_short(tmp_path):
    text = shown(tmp_path, [[RunState(f"r{n}", "running", "h:1", 0, 9) for n in range(20)]], terminal=True)
    assert "r11 " in text
    assert "r12 " not in text
    assert "and 8 more" in text


def test_without_a_terminal_there_is_one_line_at_the_start_and_one_a_finished_run(tmp_path):
    text = shown(tmp_path, [WAITING, RUNNING, OVER, OVER], terminal=False)
    assert text.splitlines() == [
        "3 waiting; 0 of 30 epochs, no rate yet: no particle has finished since this command started",
        "[1/3] a: sparsity 90.00 %, test accuracy 80.00 %, 12.0 s",
        "[2/3] b: sparsity 90.00 %, test loss 0.2500, 12.0 s",
        "[3/3] c failed: bad [thing]",
    ]


def test_without_a_terminal_a_line_every_30_seconds_has_the_runs_the_rate_and_the_time_left(tmp_path):
    half = [RunState("a", "running", "host:7", 5, 10), *WAITING[1:]]
    text = shown(tmp_path, [WAITING, WAITING, half, half, half], terminal=False, seconds=15)
    assert text.splitlines()[1:] == [
        "1 running, 2 waiting; 5 of 30 epochs, 0.167 epochs/s, about 2 min 30 s left",
        "1 running, 2 waiting; 5 of 30 epochs, 0.0833 epochs/s, about 5 min 00 s left",
    ]


def test_runs_that_fail_alike_share_one_message(tmp_path):
    named = {name: f"no GPU. Try {tmp_path}/{name}/config.json" for name in "abc"} | {"d": "no data"}
    failed = [RunState(name, "failed", error=text) for name, text in named.items()]
    text = shown(tmp_path, [[RunState(name, "waiting") for name in "abcd"], failed], terminal=False)
    assert text.splitlines()[1:] == [
        f"[1/4] a failed: no GPU. Try {tmp_path}/a/config.json",
        "[2/4] b failed as a did",
        "[3/4] c failed as a did",
        "[4/4] d failed: no data",
    ]
    assert failures(failed) == [(named["a"], ["a", "b", "c"]), ("no data", ["d"])]


def test_a_run_that_fails_after_some_epochs_leaves_the_rate_of_the_others(tmp_path):
    begun = [RunState("a", "running", "host:7", 5, 10), RunState("b", "running", "host:7", 0, 10), WAITING[2]]
    failed = RunState("a", "failed", error="bad")
    later = [[failed, *begun[1:]], [failed, RunState("b", "running", "host:7", 3, 10), WAITING[2]]]
    text = shown(tmp_path, [begun, *later], terminal=False, seconds=30)
    assert text.splitlines()[2:] == [
        "1 failed, 1 running, 1 waiting; 0 of 20 epochs, no rate yet: no particle has finished since this command "
        "started",
        "1 failed, 1 running, 1 waiting; 3 of 20 epochs, 0.05 epochs/s, about 5 min 40 s left",
    ]


def test_runs_finished_earlier_are_counted_and_not_printed_again(tmp_path):
    assert shown(tmp_path, [OVER], terminal=False) == "3 of 3 runs ended earlier and are not repeated.\n"
    assert counted(OVER) == "2 finished, 1 failed"
