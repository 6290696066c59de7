"""swamp tune from end to end, with real worker processes."""

import io
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from swamp.cli.tune import _joined
from swamp.cli.tune_progress import TuningProgress
from swamp.console import plain_console
from swamp.runs.config import RunConfig
from swamp.tuning.optuna_studies import TrialRecord
from swamp.tuning.search_space import parse_range
from swamp.tuning.tuning_directory import TuningDirectory, TuningPlan

from .command import fork_workers, swamp

TINY = ["digits-mlp", "--model", "mlp-16", "--examples", "320", "--sparsity", "0.75", "--backend", "sequential"]
STUDY = """
recipe = "digits-mlp"
[settings]
model = "mlp-16"
sparsity = 0.75
examples = 320
backend = "sequential"
[grid]
method = ["imp", "swamp"]
[search]
lr = "0.05..0.5:log"
particles = [1, 2]
weight-decay = true
swa-fraction = {low = 0.25, high = 0.75}
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_two_methods_are_tuned_with_as_many_trials_each_and_the_best_can_be_run(capsys, monkeypatch):
    fork_workers(monkeypatch)
    Path("tiny.toml").write_text(STUDY)
    assert swamp("tune", "tiny.toml", "--trials", 3, "--json") == 0
    printed = capsys.readouterr()
    done = json.loads(printed.out)
    assert printed.out.count("\n") == 1
    assert done["tuning"] == "tunings/tiny"
    assert done["metric"] == "accuracy"
    for method, options in (
        ("imp", {"lr", "weight-decay"}),
        ("swamp", {"lr", "particles", "weight-decay", "swa-fraction"}),
    ):
        found = done["methods"][method]
        assert found["trials"] == found["finished"] + found["stopped"] == 3
        assert set(found["best"]["settings"]) == options
        config = RunConfig.load(Path(found["best"]["config"]))
        assert config.plan.method == method
        assert config.training.lr == found["best"]["settings"]["lr"]
        assert config.training.epochs == found["best"]["epochs"]
        assert config.test_data
    assert swamp("run", "--config", "tunings/tiny/best-imp.json", "--out", "run", "--json") == 0
    run = json.loads(capsys.readouterr().out)
    # The same weights as in the trial, which had no test data.
    assert run["cycles"][-1]["validation"]["accuracy"] == done["methods"]["imp"]["best"]["value"]
    assert run["test"]["accuracy"] is not None
    assert swamp("tune", "tunings/tiny", "--trials", 4) == 0
    out = capsys.readouterr().out
    assert "6 of 8 trials ended earlier and are not repeated." in out
    assert re.search(r"\[8/8\] \w+ trial 3: accuracy \d\d\.\d\d %", out)
    assert "swamp run --config tunings/tiny/best-swamp.json --seed 1" in out
    assert swamp("tune", "tunings/tiny", "--parallel", 0, "--json") == 0
    assert json.loads(capsys.readouterr().out)["methods"]["swamp"]["trials"] == 4
    assert swamp("tune", "tunings/tiny", "--metric", "nll") == 2
    assert "holds another tuning. It differs in metric: accuracy -> nll" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_signal_to_the_parent_saves_and_the_same_command_continues(capsys, monkeypatch):
    """The worker is a new process the first time, and forked the second time."""
    command = ["tune", *TINY, "--search", "lr", "--trials", "3", "--out", "out"]

    def stop() -> None:
        while not list(Path("out").glob("swamp/trial-0001/ticket.safetensors")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    asked = threading.Thread(target=stop)
    asked.start()
    assert swamp(*command) == 143
    asked.join()
    assert "stopped; finished work is saved. Repeat the command to continue." in capsys.readouterr().err
    fork_workers(monkeypatch)
    assert swamp(*command, "--json", "--parallel", 2) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["swamp"]["trials"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "lr", "--lr", "0.1"], "lr is searched ('lr=0.01..0.3:log'), and also set on the command line"),
        (["--search", "lr", "--search", "lr=0.1..1"], "lr is searched twice ('lr=0.1..1')"),
        (["--methods", "imp,swmp"], "unknown method 'swmp'. Did you mean swamp"),
        (["--methods", "imp", "imp"], "methods must name each method once"),
        (["--method", "imp", "--methods", "swamp"], "give --method or --methods, not both"),
        (["--metric", "accurracy"], "unknown metric 'accurracy'. Did you mean accuracy?"),
        (["--validation", "0"], "models are measured on validation data, and this task has none"),
        (["--trials", "0"], "trials must be 1 or more, got 0"),
        (["--parallel", "-1"], "parallel must be 0 or more"),
        (["--method", "imp", "--search", "particles"], "imp trains one particle per cycle"),
        (["--search", "nonsense"], "--search 'nonsense': unknown option 'nonsense'"),
        (["--storage", "nowhere://x"], "is no address of a database"),
        (["--serch", "lr"], "unknown option --serch. Did you mean --search"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments, message, capsys):
    assert swamp("tune", *TINY, "--out", "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[grid]\nseed = [0, 1]\n[search]\nlr = true", "has one [grid] with methods only; found plan.seed"),
        ("[settings]\nlr = 0.1\n[search]\nlr = true", "and also set under [settings] of x.toml. Leave one of the two"),
        ("[search]\nlrr = true", "x.toml, [search]: unknown option 'lrr'. Did you mean lr"),
        ("[search]\nlr = []", "x.toml, [search] has no value"),
        ("[serch]\nlr = true", "unknown key 'serch'. Did you mean search?"),
        ("search = 7", "x.toml does not fit"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(more, message, capsys):
    Path("x.toml").write_text("recipe = 'digits-mlp'\n" * ("recipe" not in more) + more)
    assert swamp("tune", "x.toml", "--out", "out") == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_swamp_study_names_the_command_for_a_file_with_ranges(capsys):
    Path("x.toml").write_text(STUDY)
    assert swamp("study", "x.toml") == 2
    assert "x.toml has ranges under [search], which swamp tune searches: swamp tune x.toml" in capsys.readouterr().err


def test_an_unknown_recipe_is_refused_with_a_suggestion(capsys):
    assert swamp("tune", "digts-mlp") == 2
    assert "unknown recipe 'digts-mlp'. Did you mean digits-mlp" in capsys.readouterr().err


def test_the_file_of_the_page_is_a_tuning(capsys):
    page = (Path(__file__).parents[2] / "docs" / "howto" / "tune.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    Path("page.toml").write_text(text)
    assert swamp("tune", "page.toml", "--parallel", 0, "--json") == 0
    assert json.loads(capsys.readouterr().out)["methods"].keys() == {"imp", "swamp"}


def test_values_of_a_repeated_option_are_one_list():
    given = [
        "mnist1d-mlp",
        "--search",
        "lr=1..2",
        "a",
        "--lr",
        "3",
        "--search=b",
        "--methods",
        "imp",
        "--quiet",
        "--search",
        "c",
    ]
    assert _joined(given, ("--search", "--methods")) == [
        "mnist1d-mlp", "--lr", "3", "--quiet", "--search", "lr=1..2", "a", "b", "c", "--methods", "imp"
    ]  # fmt: skip


class Terminal(io.StringIO):
    """Text that a terminal would show."""

    def isatty(self):
        return True


def record(number: int, state: str, value: float | None = None, cycles=(), why: str = "") -> TrialRecord:
    return TrialRecord(
        number, state, {"lr": 0.1 + number}, value, dict(enumerate(cycles, 1)), "here", "host:7", why, 0.0, 1.0
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_a_person_sees_ended_trials_the_best_so_far_rate_and_time_left(tmp_path, terminal):
    config = RunConfig()
    tuning = TuningPlan(config, ("swamp",), (parse_range("lr", config),), "accuracy", True)
    directory = TuningDirectory(tmp_path, tuning, "trials.journal", 8, "here")
    file = Terminal() if terminal else io.StringIO()
    console = plain_console(file=file, width=140, _environ={"TERM": "xterm"})
    first = [record(0, "finished", 0.9), record(1, "running")]
    later = [
        first[0],
        record(1, "stopped", cycles=[0.5, 0.25]),
        record(2, "failed", why="Trace\nbad [thing]"),
        record(3, "finished", 0.95),
        record(4, "running", cycles=[0.3]),
    ]
    with TuningProgress(directory, console) as watch:
        watch.show({"swamp": first})
        watch.show({"swamp": later})
    text = file.getvalue()
    for part in (
        "1 of 8 trials ended earlier and are not repeated.",
        "[2/8] swamp trial 1: stopped after 2 cycles at accuracy 25.00 %  (lr 1.1)",
        "[3/8] swamp trial 2: failed: bad [thing]",
        "[4/8] swamp trial 3: accuracy 95.00 %, the best so far  (lr 3.1)",
    ):
        assert part in text
    if not terminal:
        line = "trials of 8: 1 finished, 1 running; no rate yet: no trial has ended since this command started"
        assert text.count(line) == text.count("trials of 8") == 1
    else:
        for part in ("no rate yet", "best of swamp: accuracy 95.00 %, trial 3", " per trial, about ", "host:7"):
            assert part in text
        assert "of 8: 2 finished, 1 stopped, 1 failed, 1 running" in text
