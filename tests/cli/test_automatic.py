"""What sets itself on the command line: particles auto, a budget, and the ticket."""

import json

import pytest

from swamp.runs.config import RunConfig

from .command import swamp

TINY = ["digits-mlp", "--epochs", "4", "--model", "mlp-16", "--examples", "640", "--barrier-threshold", "1"]


def steps_of(run) -> int:
    return sum(json.loads(line)["steps"] for line in (run / "metrics.jsonl").read_text().splitlines())


def test_a_budget_is_explained_kept_to_and_doubled(tmp_path, capsys):
    assert swamp("run", *TINY, "--budget", "3", "--out", tmp_path / "run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("budget: lrr, 3 cycles with 1 particle of 3 epochs, 5 in the last one: 3.00 dense")
    assert lines[-1].startswith("With twice the budget: lrr, 3 cycles with 1 particle of 7 epochs")
    # Ten batches an epoch: three times four epochs.
    assert steps_of(tmp_path / "run") == 3 * 4 * 10
    # The configuration has the numbers, not the budget.
    config = RunConfig.load(tmp_path / "run" / "config.json")
    assert (config.plan.method, config.training.epochs, config.plan.last_epochs) == ("lrr", 3, 5)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        (["--method", "swamp"], "budget: swamp, "),
        (["--method=swamp", "--particles=2"], "budget: swamp, "),
        (["--particles", "2"], "budget: swamp-late-carry, 4 cycles with 2 particles "),
    ],
)
def test_an_option_with_the_value_of_the_recipe_counts_as_given(options, start, tmp_path, capsys):
    # Refused after the allotment, before any work.
    (tmp_path / "run").write_text("")
    assert swamp("run", *TINY, "--budget", "9", *options, "--out", tmp_path / "run") == 2
    assert capsys.readouterr().out.startswith(start)


@pytest.mark.slow
def test_a_time_becomes_dense_trainings_by_measurement(tmp_path, capsys):
    assert swamp("run", *TINY, "--budget", "1s", "--out", tmp_path / "run", "--quiet") == 0
    assert "dense trainings of 4 epochs" in capsys.readouterr().out


def test_the_decisions_on_particles_are_shown_and_reported(tmp_path, capsys):
    run, page = tmp_path / "run", tmp_path / "report.html"
    options = ["--particles", "auto", "--max-particles", "3", "--densities", "1", "0.5"]
    assert swamp("run", *TINY, *options, "--out", run) == 0
    out = capsys.readouterr().out
    assert "2 to 3 particles per cycle, as many as pay" in out
    assert " particles: loss " in out
    assert swamp("report", run, "-o", page) == 0
    assert "Chosen numbers of particles" in page.read_text()
    assert "Decisions of swamp (auto)" in page.read_text()


@pytest.mark.slow
def test_the_ticket_is_found_before_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    easy = ["--densities", "1", "0.5", "--lr", "0.01", "--ticket", "auto"]
    assert swamp("run", *TINY, *easy, "--out", "run") == 0
    assert "ticket: after " in capsys.readouterr().out
    assert len(list(tmp_path.glob("tickets/*/trials.jsonl"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "1"], "a budget of 1 dense trainings is too small"),
        (["--budget", "soon"], "such as 12, or a time, such as 30min"),
        (["--budget", "9", "--particles", "auto"], "a budget is spent in advance"),
        (["--budget", "9", "--last-epochs", "3"], "a budget sets --last-epochs"),
        (["--ticket", "auto", "--budget", "9"], "--ticket auto costs what its search needs. Give one of them"),
        (["--ticket", "auto", "--ticket-epochs", "2"], "--ticket auto finds --ticket-epochs"),
        (["--method", "imp", "--particles", "auto"], "imp trains one particle per cycle"),
        (["--particles", "automatic"], "particles"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(options, message, tmp_path, capsys):
    assert swamp("run", *TINY, *options, "--out", tmp_path / "run") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_fixed_numbers_of_particles_are_compared_with_auto(tmp_path, capsys):
    for particles in (2, "auto"):
        options = ["--particles", particles, "--max-particles", 2, "--densities", "1", "0.5", "--quiet"]
        assert swamp("run", *TINY, *options, "--out", tmp_path / str(particles)) == 0
    assert swamp("compare", tmp_path / "2", tmp_path / "auto", "--out", tmp_path / "comparison") == 0
    assert "swamp (auto)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_time_of_an_agent_is_not_measured(tmp_path, capsys):
    assert swamp("run", "cartpole-ppo", "--budget", "30min", "--out", tmp_path / "run") == 2
    assert "the time of an agent's environments is not measured" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
