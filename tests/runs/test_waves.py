"""Runs that choose their numbers of particles: stopped anywhere or killed, they end with the same bits."""

import json
import random
from threading import Event

import pytest

from swamp.algorithms import Plan
from swamp.errors import Interrupted
from swamp.runs.config import RunConfig
from swamp.runs.execute import prepare, resume, start
from swamp.runs.overview import overview
from swamp.runs.run_progress import Reporter

from .conftest import StopAt, assert_same_outcome, go, killed_and_resumed, tiny
from .test_ranks import ranks_of


def auto(**changes) -> RunConfig:
    plan = Plan(
        particles=("auto",),
        densities=(1.0, 0.5),
        ticket_epochs=1,
        barrier_threshold=1.0,
        max_particles=4,
        least_gain=0.0,
    )
    return tiny(plan=plan, backend="sequential", **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, go(auto(), path)["seconds"]


def records(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_record_has_the_decisions(whole):
    decisions = [[wave["decision"] for wave in record["waves"]] for record in records(whole[0])]
    assert all(one[-1] in ("enough", "dropped", "all") and {*one[:-1]} <= {"more"} for one in decisions)
    assert max(map(len, decisions)) > 1


# In the ticket; in the pair; at its end; in the first particle after it; in the second cycle.
@pytest.mark.parametrize("step", [3, 15, 50, 57, 90])
def test_stopped_at_any_step_it_ends_as_if_it_had_not_been(step, whole, tmp_path):
    run, stop = tmp_path / "run", Event()
    with pytest.raises(Interrupted, match="swamp resume"):
        start(auto(), run, StopAt(step, stop), stop)
    resume(run, Reporter(), Event())
    assert_same_outcome(whole[0], run)


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes_to_the_same_bits(whole, tmp_path):
    moments, run = random.Random(4), tmp_path / "run"
    pauses = [moments.uniform(0.05, whole[1] * 0.6) for _ in range(3)]
    killed_and_resumed(auto(snapshot_seconds=1e-9), run, pauses)
    assert_same_outcome(whole[0], run)


def test_particles_that_were_left_out_are_deleted_with_the_others(tmp_path):
    go(auto(keep_checkpoints="means"), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("particle-*"))


def test_the_first_lines_say_that_the_number_is_chosen():
    problem, model = prepare(auto())
    text = overview(auto(), problem.task, model).text
    assert "2 to 4 particles per cycle, as many as pay" in text
    assert "at least" in text


@pytest.mark.slow
def test_ranks_train_the_particles_that_the_first_one_asks_for(whole, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    ranks = ranks_of(2, log, "run", "--config", whole[0] / "config.json", "--out", run, "--quiet")
    assert [rank.wait() for rank in ranks] == [0, 0], log.read_text()
    assert_same_outcome(whole[0], run)
