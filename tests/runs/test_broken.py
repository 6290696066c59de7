"""Runs with particles that broke: stopped and killed in the middle of mending, they end as if they had not been."""

import json
import os
import random
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

import pytest

from swamp.algorithms import Plan
from swamp.algorithms.ensembles import member_seed
from swamp.backends import BACKENDS, Vmapped
from swamp.cli import main
from swamp.errors import Diverged, Interrupted
from swamp.files import load_tensors
from swamp.report.comparison import compare
from swamp.report.run_records import read_run
from swamp.runs import execute
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import resume, start
from swamp.runs.trajectory import read_trajectory
from swamp.training import Seed
from swamp.training.mask_updates import Dynamic

from .conftest import StopAt, assert_same_outcome, go, go_on, killed_and_resumed, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*diverged")
WHO = Seed(0).at("cycle", 1, "particle", 1)


@pytest.fixture
def spoil(monkeypatch, poisoned):
    """Have every run from here on a spoilt batch in trainings with these seeds, in this process and its children."""
    honest = execute.build_problem

    def plant(*seeds, **where):
        def built(*given):
            problem = honest(*given)
            return replace(problem, task=poisoned(problem.task, seeds, **where))

        monkeypatch.setattr(execute, "build_problem", built)

    return plant


def steps_of(config, path) -> int:
    counter = StopAt(10**6, Event())
    start(config, path, counter, Event())
    return 10**6 - counter.left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "policy", "stops"), [("sequential", "restart", 2), ("threads", "restart", 1), ("sequential", "drop", 1)]
)
def test_stopped_at_any_step_it_ends_as_if_it_had_not_been(backend, policy, stops, spoil, tmp_path):
    spoil(WHO, WHO.at("restart", 1), Seed(0).at("cycle", 0, "particle", 0), epoch=2)
    config = tiny(backend=backend, trajectory_every=3, snapshot_seconds=0.02)
    config = replace(config, plan=replace(config.plan, on_divergence=policy, sparsity=0.5))
    steps = steps_of(config, tmp_path / "whole")
    for step in sorted(random.Random(3).sample(range(1, steps), stops)):
        run, stop = tmp_path / str(step), Event()
        with pytest.raises(Interrupted, match="swamp resume"):
            start(config, run, StopAt(step, stop), stop)
        counter = StopAt(10**6, Event())
        resume(run, counter, Event())
        # Nothing that was finished is trained again, a training that broke among it.
        assert 10**6 - counter.left <= steps - step + 2 * 20
        assert_same_outcome(tmp_path / "whole", run)
        assert not list(run.rglob("unfinished*"))
        assert not list(run.rglob("*.part-*"))


@pytest.mark.slow
def test_killed_during_a_restart_after_divergence_it_resumes_to_the_same_bits(spoil, tmp_path):
    spoil(WHO, WHO.at("restart", 1), epoch=2)
    config = tiny(snapshot_seconds=0.02)
    config = replace(config, plan=replace(config.plan, sparsity=0.5))
    seconds = go(config, tmp_path / "whole")["seconds"]
    # The first is after the whole first cycle, before or in the particle that is trained again.
    killed_and_resumed(config, tmp_path / "run", [seconds * 0.6, seconds * 0.2])
    assert_same_outcome(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["swamp", "imp-ensemble"])
def test_a_stack_with_a_diverged_particle_resumes_to_the_same_bits(method, spoil, tmp_path, monkeypatch):
    # Large enough that a smaller stack, and another place in it, round otherwise.
    monkeypatch.setitem(BACKENDS, "vmapped", partial(Vmapped, compiled=False))
    second = Seed(0).at("cycle", 0, "particle", 1)
    spoil(second if method == "swamp" else Seed(member_seed(0, 1)).at("cycle", 0, "particle", 0), epoch=1)
    plan = Plan(method, particles=(3,), densities=(1.0,), ticket_epochs=1, barrier_threshold=1.0)
    config = tiny(plan=plan, backend="vmapped", model="mlp-bn-100")
    steps = steps_of(config, tmp_path / "whole")
    broken = json.loads(next((tmp_path / "whole").rglob("divergences.json")).read_text())["trainings"]
    assert len(broken) == 1
    # Two of three go on after it, and then it goes on alone.
    for left in (20, 70):
        run, stop = tmp_path / str(left), Event()
        with pytest.raises(Interrupted):
            start(config, run, StopAt(steps - left, stop), stop)
        assert [*run.rglob("divergences.json")]
        go_on(run)
        assert_same_outcome(tmp_path / "whole", run)


class Crash(BaseException):
    """The machine stops here."""


@pytest.mark.slow
def test_a_crash_before_any_single_write_or_removal_while_mending_loses_nothing(spoil, tmp_path, monkeypatch):
    spoil(WHO, epoch=2)
    config = tiny()
    config = replace(config, plan=replace(config.plan, sparsity=0.5))
    steps, before, rename = [], Path.unlink, os.replace

    def counted(work):
        def step(*given, **more):
            steps.append(str(given[0]))
            if len(steps) == stop_at[0]:
                raise Crash
            return work(*given, **more)

        return step

    stop_at = [0]
    monkeypatch.setattr("os.replace", counted(rename))
    monkeypatch.setattr(Path, "unlink", counted(before))
    go(config, tmp_path / "whole")
    broke = next(i for i, name in enumerate(steps, 1) if "divergences.json" in name)
    total = len(steps)
    for number in range(broke - 3, min(broke + 2, total)):
        steps.clear()
        stop_at[0] = number
        run = tmp_path / str(number)
        with pytest.raises(Crash):
            go(config, run)
        stop_at[0] = 0
        go_on(run)
        assert_same_outcome(tmp_path / "whole", run)


@pytest.mark.parametrize("method", ["rigl-swamp", "sup-tickets"])
def test_a_resumed_run_with_dynamic_masks_has_the_same_bits(method, spoil, tmp_path):
    who = Seed(0).at("cycle", 0, "particle", 1 if method == "rigl-swamp" else 0)
    spoil(who, epoch=2)
    plan = Plan(method, particles=(2,), densities=(0.5,), ticket_epochs=0.5, barrier_threshold=1.0)
    config = tiny(plan=replace(plan, dynamic=Dynamic(update_interval=6, drop_fraction=0.5)))
    steps = steps_of(config, tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "divergences.json").read_text())["trainings"][0]["again"] == 0.025
    for step in sorted(random.Random(5).sample(range(1, steps), 1)):
        run, stop = tmp_path / str(step), Event()
        with pytest.raises(Interrupted, match="swamp resume"):
            start(config, run, StopAt(step, stop), stop)
        go_on(run)
        assert_same_outcome(tmp_path / "whole", run)


@pytest.mark.slow
def test_divergences_of_a_ticket_and_of_an_ensemble_member_are_stored(spoil, tmp_path):
    second = Seed(member_seed(0, 1))
    spoil(second.at("ticket"), second.at("cycle", 1, "particle", 0), epoch=0)
    config = tiny()
    config = replace(config, plan=replace(config.plan, method="imp-ensemble"))
    whole = go(config, tmp_path / "whole")
    assert [[(b["cycle"], b["particle"]) for b in c["divergences"]] for c in whole["cycles"]] == [
        [(None, 1)],
        [(1, 1)],
        [],
    ]
    stop = Event()
    with pytest.raises(Interrupted):
        start(config, tmp_path / "run", StopAt(150, stop), stop)
    go_on(tmp_path / "run")
    assert_same_outcome(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_diverged_for_good_fails_again_at_once(spoil, tmp_path):
    spoil(*(WHO.at("restart", times) for times in range(1, 4)), WHO)
    with pytest.raises(Diverged, match=r"cycle 1, particle 1: .* It diverged 4 times.* --config .* --lr"):
        go(tiny(), tmp_path / "run")
    counter = StopAt(10**6, Event())
    with pytest.raises(Diverged, match=r"cycle 1, particle 1: .* It diverged 4 times"):
        resume(tmp_path / "run", counter, Event())
    assert counter.left == 10**6


@pytest.mark.slow
def test_the_trajectory_of_a_restarted_particle_has_no_point_of_the_diverged_training(spoil, tmp_path):
    spoil(WHO, epoch=2)
    config = tiny(trajectory_every=3, snapshot_seconds=1e-9)
    go(config, tmp_path / "run")
    path = read_trajectory(RunDirectory(tmp_path / "run").trajectory(1, 1))
    assert all(bool(value.isfinite().all()) for point in path.values() for value in point.values())


@pytest.mark.slow
def test_a_dropped_particle_is_not_on_disk_and_analyses_ignore_it(spoil, tmp_path, capsys):
    spoil(WHO)
    config = tiny()
    run = tmp_path / "run"
    go(replace(config, plan=replace(config.plan, on_divergence="drop", particles=(3,))), run)
    assert sorted(path.name for path in (run / "cycle-01").glob("particle-*")) == [
        "particle-0.safetensors",
        "particle-2.safetensors",
    ]
    assert all(bool(v.isfinite().all()) for v in load_tensors(run / "cycle-01" / "mean.safetensors")[0].values())
    given = (
        "--only curvature barriers predictions --curvature-particles 2 --examples 60 --curvature-examples 20 --points 3"
    )
    main(["analyze", str(run), *given.split(), "--quiet"])
    made = (run / "analysis.jsonl").read_text()
    assert "curvature/cycle-01/particle-2" in made
    assert "curvature/cycle-01/particle-1" not in made


@pytest.mark.slow
def test_compare_lists_diverged_trainings_and_how_they_were_handled(spoil, tmp_path, capsys):
    spoil(WHO, Seed(0).at("ticket"), epoch=0)
    go(tiny(), tmp_path / "run")
    (note,) = compare([read_run(tmp_path / "run")]).notes
    assert note == (
        "swamp (2): 2 trainings diverged (loss or weights not finite): seed 0, the ticket at learning rate 0.05, "
        "trained again with 0.025, seed 0, cycle 1, particle 1 at learning rate 0.05, trained again with 0.025."
    )
    main(["compare", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert "2 trainings diverged" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_the_command_warns_and_the_summary_is_strict_json(spoil, tmp_path, capsys, monkeypatch):
    spoil(WHO)
    config = tiny()
    go_config = tmp_path / "config.json"
    go_config.write_text(json.dumps(config.to_json()))
    main(["run", "--config", str(go_config), "--out", str(tmp_path / "run"), "--json", "--on-divergence", "drop"])
    said = capsys.readouterr()
    assert "warning: Cycle 1, particle 1, diverged" in said.err
    done = json.loads(said.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert done["cycles"][1]["divergences"][0]["again"] is None
