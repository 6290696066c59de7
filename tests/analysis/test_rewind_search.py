"""The earliest stable ticket is found and verified, and equals the ticket of a run."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swamp import cli
from swamp.algorithms import Plan
from swamp.analysis import interpolate_models, search_rewind_step
from swamp.analysis.rewind_search import InstabilityAnalysis
from swamp.api import display
from swamp.backends import Progress, Sequential, Ticket
from swamp.errors import Interrupted, SwampError
from swamp.runs.config import RunConfig
from swamp.runs.execute import prepare
from swamp.training import Training

from .runs import go, tiny

BARRIER_AT = "swamp.analysis.rewind_search.InstabilityAnalysis.barrier_at"


def planted(stable_from: int, tried: list | None = None):
    """A barrier of 10 points that falls to 1 point at a step."""

    def barrier_at(steps: int, repeat: int) -> float:
        if tried is not None:
            tried.append((steps, repeat))
        return 0.01 if steps >= stable_from else 0.1

    return barrier_at


@pytest.mark.parametrize("stable_from", [0, 1, 2, 3, 17, 500, 999, 1000])
def test_bisection_finds_the_planted_step_exactly(stable_from):
    tried: list = []
    found = search_rewind_step(planted(stable_from, tried), 1000, resolution=0)
    assert found.steps == stable_from
    assert found.confirmed
    assert len(set(tried)) == len(tried) <= 24
    assert [(trial.steps, trial.repeat) for trial in found.trials] == tried


def test_a_coarse_search_ends_within_its_resolution_and_takes_fewer_trials():
    tried: list = []
    found = search_rewind_step(planted(700, tried), 20_000, resolution=0.1)
    assert 700 <= found.steps <= 700 / 0.9
    assert len(tried) <= 12
    assert tried[-2:] == [(found.steps, 1), (found.steps // 4, 1)]


def test_on_trial_is_called_after_every_trial():
    told = []
    found = search_rewind_step(planted(5), 20, on_trial=told.append)
    assert tuple(told) == found.trials
    assert told[0].steps == 20
    assert told[1].steps == 0


@pytest.mark.parametrize("stable_from", [0, 1, 17, 700, 1000])
def test_before_each_trial_the_number_of_trials_left_is_told(stable_from):
    told = []
    found = search_rewind_step(
        planted(stable_from), 1000, resolution=0, on_start=lambda step, repeat, left: told.append((step, repeat, left))
    )
    assert [(step, repeat) for step, repeat, _ in told] == [(trial.steps, trial.repeat) for trial in found.trials]
    left = [left for *_, left in told]
    assert left[-1] == 1
    if stable_from:
        # Not known exactly: the steps of the bisection depend on what is found.
        assert all(abs(one - (len(told) - done)) <= 9 for done, one in enumerate(left))
        assert left[0] > left[len(left) // 2] > left[-1]


def test_without_a_stable_step_nothing_is_found():
    found = search_rewind_step(planted(101), 100)
    assert (found.steps, found.confirmed, len(found.trials)) == (None, False, 1)


def test_a_result_that_other_batch_orders_contradict_is_not_confirmed():
    unstable_again = search_rewind_step(lambda steps, repeat: 0.1 if steps < 50 or repeat else 0.0, 100, resolution=0)
    assert (unstable_again.steps, unstable_again.confirmed) == (50, False)
    # Stable at a quarter of it too, which contradicts the assumption of the bisection.
    broken = search_rewind_step(
        lambda steps, repeat: 0.1 if 30 <= steps < 50 or steps in (0, 10) else 0.0, 100, resolution=0
    )
    assert (broken.steps, broken.confirmed) == (50, False)


def test_a_barrier_at_the_threshold_or_nan_is_not_stable():
    assert search_rewind_step(lambda steps, repeat: 0.02, 10).steps is None
    assert search_rewind_step(lambda steps, repeat: float("nan"), 10).steps is None


@pytest.mark.parametrize(("last", "resolution"), [(-1, 0.1), (10, 1.0), (10, -0.1)])
def test_bounds_and_resolutions_out_of_range_are_refused(last, resolution):
    with pytest.raises(SwampError, match="last must be 0 or more"):
        search_rewind_step(planted(1), last, resolution=resolution)


def instability(model, task, sparsity=0.5, *, lr_after_rewind="restart", **others) -> InstabilityAnalysis:
    plan = Plan(sparsity=0.75, particles=(2,), prune_fraction=(0.5,))
    training = Training(epochs=3, batch_size=16, lr=0.1, swa_fraction=0.34, lr_after_rewind=lr_after_rewind)
    return InstabilityAnalysis(model, task, plan, training, Sequential(model, task), sparsity, **others)


def test_the_ticket_tried_is_the_one_that_a_run_takes(tmp_path):
    config = tiny(2)
    config = replace(config, plan=replace(config.plan, sparsity=0.5, ticket_epochs=1.3))
    go(config, tmp_path / "run")
    taken = Ticket.load(tmp_path / "run" / "ticket.safetensors")
    problem, model = prepare(config)
    tried = InstabilityAnalysis(model, problem.task, config.plan, config.training, Sequential(model, problem.task), 0.5)
    assert taken.steps == 13
    assert tried.ticket(13).id == taken.id
    assert tried.ticket(0).id == Ticket(model.state_dict(), 0).id


def test_copies_differ_only_in_batch_order_and_are_trained_on_a_magnitude_mask(normed, task):
    normed.eval()
    look = instability(normed, task)
    ticket = look.ticket(4)
    mask = look.mask(ticket)
    assert mask.nnz == round(0.5 * mask.prunable)
    (dense,) = look.train(ticket, look.dense, [look.seed.at("cycle", 0, "particle", 0)], "")
    kept = torch.cat([dense.weights[name][mask[name]].abs() for name in mask])
    cut = torch.cat([dense.weights[name][~mask[name]].abs() for name in mask])
    assert float(cut.max()) <= float(kept.min())
    one, other = look.train(ticket, mask, [look.seed.at("instability", 0, "copy", i) for i in range(2)], "")
    assert (one.ticket, one.mask) == (other.ticket, other.mask) == (ticket.id, mask.digest)
    assert not torch.equal(one.weights["0.weight"], other.weights["0.weight"])
    asked = []
    train = look.backend.train

    def spied(request):
        asked.append((request.ticket.id, request.mask.digest, request.seeds))
        return train(request)

    look.backend.train = spied
    expected = interpolate_models(normed, task, one, other).barriers.error
    assert look.barrier_at(4) == pytest.approx(expected, abs=1e-12)
    look.barrier_at(4, repeat=1)
    pairs = [seeds for *_, seeds in asked if len(seeds) == 2]
    assert [(found, digest) for found, digest, seeds in asked if len(seeds) == 2] == [(ticket.id, mask.digest)] * 2
    assert len({seed for pair in pairs for _, seed in pair}) == 4
    assert instability(normed, task, 0.0).mask(ticket) == look.dense


def test_methods_without_a_ticket_and_sparsities_out_of_range_are_refused(mlp, task):
    with pytest.raises(SwampError, match=r"must lie in \[0, 1\), got 1"):
        instability(mlp, task, 1.0)
    with pytest.raises(SwampError, match="snip has no ticket"):
        InstabilityAnalysis(mlp, task, Plan(method="snip"), Training(), Sequential(mlp, task), 0.5)


def test_a_search_stops_when_its_progress_raises(mlp, task):
    class Stop(Progress):
        def on_step(self, *_):
            raise Interrupted("stopped.")

    with pytest.raises(Interrupted):
        instability(mlp, task, progress=lambda what, networks: Stop()).barrier_at(3)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("after_rewind", ["restart", "advance"])
def test_the_trainings_of_a_trial_are_announced_with_their_steps(sparsity, steps, after_rewind, mlp, task):
    taken: list[tuple[str, int, int]] = []

    class Noted(Progress):
        def __init__(self, what, networks):
            self.what = what

        def on_step(self, index, step, total, snapshot):
            taken.append((self.what, index, step))

    look = instability(mlp, task, sparsity, progress=Noted, lr_after_rewind=after_rewind)
    look.barrier_at(steps)
    counts = list(Counter((what, index) for what, index, _ in taken).values())
    assert counts == look.trainings(steps)
    assert len({what for what, *_ in taken}) == 1 + (sparsity > 0) + (steps > 0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


TINY = ["digits-mlp", "--epochs", "2", "--model", "mlp-16", "--swa-fraction", "0.5", "--examples", "640"]
TINY += ["--backend", "sequential", "--latest-epochs", "1"]


def swamp(*arguments: object) -> int:
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def planted_command(monkeypatch):
    monkeypatch.setattr(BARRIER_AT, lambda self, *at: planted(6)(*at))


@pytest.mark.slow
def test_the_command_writes_a_configuration_that_runs(tmp_path, planted_command, capsys):
    file = tmp_path / "found.json"
    assert swamp("ticket", *TINY, "--sparsity", "0.5", "--resolution", "0", "--out", file) == 0
    out = capsys.readouterr().out
    assert "earliest stable ticket at sparsity 0.5: after 6 steps, --ticket-epochs 0.6" in out
    assert out.count("steps (") >= 5
    assert "verification, other batch orders" in out
    assert "not confirmed" not in out
    config = RunConfig.load(file)
    assert config.plan.ticket_epochs == 0.6
    assert config.training.epochs == 2
    assert swamp("run", "--config", file, "--out", tmp_path / "run", "--quiet", "--json") == 0
    assert Ticket.load(tmp_path / "run" / "ticket.safetensors").steps == 6
    assert swamp("ticket", *TINY, "--out", file) == 2
    assert "already exists" in capsys.readouterr().err.replace("\n", " ")


def test_a_killed_search_resumes_with_the_next_trial(tmp_path, monkeypatch, capsys):
    asked = []

    def measured(self, steps, repeat=0):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append((steps, repeat))
        return planted(6)(steps, repeat)

    search = ["ticket", *TINY, "--at-sparsity", "0.5", "--resolution", "0", "--json", "--quiet"]
    monkeypatch.setattr(BARRIER_AT, measured)
    assert swamp(*search) == 130
    before = list(asked)
    assert len(before) == 2

    def noted(self, *at):
        asked.append(at)
        return planted(6)(*at)

    monkeypatch.setattr(BARRIER_AT, noted)
    # Trials do not depend on the ticket of the recipe.
    assert swamp(*search, "--ticket-epochs", "1") == 0
    done = json.loads(capsys.readouterr().out)
    assert done["steps"] == 6
    assert len(asked) == len(set(asked)) == len(done["trials"])
    assert [(trial["steps"], trial["repeat"]) for trial in done["trials"]][:2] == before
    assert Path(done["picture"]).read_text().count("<svg") == 1


@pytest.mark.slow
def test_trials_of_another_search_or_damaged_ones_are_refused(tmp_path, planted_command, capsys):
    search = ["ticket", *TINY, "--at-sparsity", "0.5", "--trials", tmp_path / "t", "--quiet"]
    assert swamp(*search) == 0
    assert swamp(*search, "--lr", "0.7") == 2
    assert "trials of another search" in capsys.readouterr().err.replace("\n", " ")
    file = tmp_path / "t" / "trials.jsonl"
    file.write_text(file.read_text()[:-9])
    assert swamp(*search) == 2
    assert "is damaged" in capsys.readouterr().err.replace("\n", " ")


def test_as_json_it_prints_one_object(capsys, planted_command):
    assert swamp("ticket", *TINY, "--at-sparsity", "0", "--json", "--quiet", "--resolution", "0") == 0
    printed = capsys.readouterr()
    done = json.loads(printed.out)
    assert (done["steps"], done["epochs"], done["sparsity"], done["confirmed"], done["config"]) == (
        6,
        0.6,
        0,
        True,
        None,
    )
    assert set(done["trials"][0]) == {"steps", "barrier", "seconds", "repeat", "epochs"}
    assert printed.err == ""


def test_the_command_trains_real_networks(capsys):
    assert (
        swamp("ticket", *TINY, "--at-sparsity", "0.5", "--threshold", "1.01", "--json", "--evaluation-examples", "200")
        == 0
    )
    done = json.loads(capsys.readouterr().out)
    assert done["steps"] == 0
    assert [trial["steps"] for trial in done["trials"]] == [10, 0, 0]
    assert all(0 <= trial["barrier"] <= 1 for trial in done["trials"])


def test_without_a_terminal_lines_have_the_trial_its_training_the_loss_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(display, "LOG_SECONDS", 0)
    examples = ["--examples", "640", "--evaluation-examples", "200"]
    assert swamp("ticket", *TINY, *examples, "--at-sparsity", "0.5", "--threshold", "1.01") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ticket after 10 steps, training the ticket, step 1 of 10, loss ")
    assert any(re.fullmatch(r"about \d+ s left: \d+ of [1-9]\d0 steps, and evaluation", line) for line in lines)
    for what in ("the dense network, step 12 of 20", "both copies, step 7 of 20"):
        pattern = rf"ticket after 10 steps, training {what}, loss \d[.\d]*, [\d,.]+ steps/s, about \d+ s left"
        assert any(re.fullmatch(pattern, line) for line in lines)
    assert sum("points, stable" in line for line in lines) == 3


@pytest.mark.slow
def test_without_a_stable_step_the_error_says_what_to_try(capsys, tmp_path):
    bounds = ["--latest-epochs", "0.3", "--threshold", "1e-9"]
    arguments = [*TINY, *bounds, "--at-sparsity", "0.5", "--json", "--out", tmp_path / "found.json"]
    assert swamp("ticket", *arguments) == 2
    printed = capsys.readouterr()
    told = printed.err.replace("\n", " ")
    assert "no ticket up to step 3" in told
    assert "Try a later ticket (swamp ticket --latest-epochs), a lower learning rate" in told
    assert json.loads(printed.out)["steps"] is None
    assert not (tmp_path / "found.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--latest-epochs", "3"], "between 0 and 2"),
        (["--at-sparsity", "1"], "must lie in"),
        (["--method", "snip"], "has no ticket"),
        (["--resolution", "2"], "resolution in"),
        (["--threshold", "0"], "threshold must be above 0"),
    ],
)
def test_bad_input_gets_a_message_before_any_training(arguments, message, capsys):
    assert swamp("ticket", *TINY[:-2], *arguments) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_the_help_explains_the_options(capsys):
    assert swamp("ticket", "--help") == 0
    shown = capsys.readouterr().out
    for word in ("--at-sparsity", "--threshold", "bisection", "batch order", "--lr"):
        assert word in shown
