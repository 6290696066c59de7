"""A study whose seeds are trained at once: the runs are what they are alone, whatever becomes of one of them."""

import json
import os
import shutil
from dataclasses import replace
from threading import Event

import pytest

from swamp.backends import Sequential, Threads
from swamp.cli.progress import Quiet
from swamp.errors import Interrupted, SwampError
from swamp.files import load_tensors
from swamp.runs import RunConfig, Study, StudyDirectory, resume, work
from swamp.runs.in_step import do_in_step

from .conftest import StopAt, assert_same_outcome, go, in_child, tiny


def seeded(*seeds: int, **changes) -> dict[str, RunConfig]:
    config = tiny(**{"backend": "sequential", **changes})
    return {f"seed{s}": replace(config, plan=replace(config.plan, seed=s)) for s in seeds}


def begun(path, runs: dict[str, RunConfig]) -> StudyDirectory:
    return StudyDirectory.join(path, runs, seeds_at_once=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The runs of seeded(0, 1, 2), each done by itself: name -> directory."""
    folder = tmp_path_factory.mktemp("alone")
    runs = seeded(0, 1, 2)
    for name, config in runs.items():
        go(config, folder / name)
    return {name: folder / name for name in runs}


def states(study: StudyDirectory) -> list[str]:
    return [state.state for state in study.states()]


def sessions(study: StudyDirectory, name: str) -> list[list[str]]:
    """The runs that were trained at once with this one, session by session."""
    return [one["at_once"] for one in json.loads(study.run(name).environment.read_text())]


def test_the_runs_are_those_that_they_are_alone(alone, tmp_path):
    study = begun(tmp_path / "s", seeded(0, 1, 2))
    work(study, Quiet(), Event())
    assert states(study) == ["finished"] * 3
    for name in study.runs:
        assert_same_outcome(alone[name], study.run(name).path)
        assert study.summary(name)["test"] == json.loads((alone[name] / "summary.json").read_text())["test"]
        assert sessions(study, name) == [["seed0", "seed1", "seed2"]]
        assert study.alone(name) == ""


def test_those_of_a_method_and_a_setting_are_trained_at_once_and_ensembles_alone(tmp_path):
    given = {
        f"{name}-{method}": replace(config, plan=replace(config.plan, method=method))
        for method in ("swamp", "imp", "imp-ensemble")
        for name, config in seeded(0, 1).items()
    }
    given["other"] = replace(given["seed0-imp"], training=replace(given["seed0-imp"].training, lr=0.04))
    study = begun(tmp_path / "s", given)
    assert [study.company(name) for name in given] == [
        *[["seed0-swamp", "seed1-swamp"]] * 2,
        *[["seed0-imp", "seed1-imp"]] * 2,
        ["seed0-imp-ensemble"],
        ["seed1-imp-ensemble"],
        ["other"],
    ]
    assert StudyDirectory.join(tmp_path / "t", given).company("seed0-swamp") == ["seed0-swamp"]


def test_all_particles_of_a_cycle_are_handed_over_at_once(tmp_path, monkeypatch):
    calls: list[list[int]] = []
    train = Threads.train_groups

    def train_groups(self, groups, training, **options):
        calls.append([len(group.seeds) for group in groups])
        return train(self, groups, training, **options)

    monkeypatch.setattr(Threads, "train_groups", train_groups)
    work(begun(tmp_path / "s", seeded(0, 1, backend="threads")), Quiet(), Event())
    assert calls == [[1], [1], [2, 2], [2, 2], [2, 2]]


def test_a_worker_that_is_stopped_or_killed_leaves_runs_that_end_like_those_never_interrupted(alone, tmp_path):
    study = begun(tmp_path / "s", seeded(0, 1))
    stop = Event()
    with pytest.raises(Interrupted):
        work(study, StopAt(95, stop), stop)
    assert states(study) == ["waiting", "waiting"]

    class Dies(Quiet):
        left = 60

        def training(self, *step):
            self.left -= 1
            if not self.left:
                os._exit(9)

    pid = in_child(lambda: work(study, Dies(), Event()))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    work(study, Quiet(), Event())
    assert states(study) == ["finished", "finished"]
    for name in study.runs:
        assert_same_outcome(alone[name], study.run(name).path)
        assert sessions(study, name) == [["seed0", "seed1"]] * 3


def test_one_that_was_begun_alone_goes_on_in_company_and_one_that_is_over_is_left_out(alone, tmp_path):
    study = begun(tmp_path / "s", seeded(0, 1, 2))
    shutil.copytree(alone["seed2"], study.run("seed2").path)
    stop = Event()
    with pytest.raises(Interrupted):
        do_in_step({study.run("seed1").path: study.runs["seed1"]}, StopAt(50, stop), stop)
    assert study.company("seed0") == ["seed0", "seed1"]
    work(study, Quiet(), Event())
    assert [sessions(study, name) for name in study.runs] == [
        [["seed0", "seed1"]],
        [["seed1"], ["seed0", "seed1"]],
        [[]],
    ]
    for name in study.runs:
        assert_same_outcome(alone[name], study.run(name).path)


def test_one_that_breaks_takes_no_other_along(alone, tmp_path, monkeypatch):
    from swamp.errors import Diverged

    study = begun(tmp_path / "s", seeded(0, 1, 2))
    train = Sequential.train

    def train_or_break(self, ticket, mask, training, seeds, **options):
        if seeds and seeds[0][1].root == 1 and mask.density < 1:
            raise Diverged("particle 0: the loss became NaN.", 3)
        return train(self, ticket, mask, training, seeds, **options)

    monkeypatch.setattr(Sequential, "train", train_or_break)
    with pytest.warns(UserWarning, match="seed0, seed1, seed2 are done one by one: cycle 1, .*became NaN"):
        work(study, Quiet(), Event())
    assert states(study) == ["finished", "failed", "finished"]
    assert "became NaN" in study.state("seed1").error
    assert sessions(study, "seed0") == [["seed0", "seed1", "seed2"], []]
    assert all("became NaN" in study.alone(name) for name in study.runs)
    monkeypatch.undo()
    study.retry()
    work(study, Quiet(), Event())
    assert states(study) == ["finished"] * 3
    for name in study.runs:
        assert_same_outcome(alone[name], study.run(name).path)


def test_after_one_has_failed_those_that_are_left_are_done_one_by_one(tmp_path):
    study = begun(tmp_path / "s", seeded(0, 1, 2))
    study.fail("seed1", ValueError("no"), "no")
    assert study.company("seed0") == ["seed0"]
    assert study.company("seed2") == ["seed2"]


def test_all_are_taken_or_none(tmp_path):
    study = begun(tmp_path / "s", seeded(0, 1))
    with study.claimed("seed1") as mine:
        assert mine
        read, write = os.pipe()

        def other():
            work(study, Quiet(), Event())
            os.write(write, b"nothing left that it may take")

        pid = in_child(other)
        assert os.waitpid(pid, 0)[1] == 0
        assert os.read(read, 100)
    assert states(study) == ["waiting", "waiting"]
    assert not study.run("seed0").config.exists()


def test_one_that_somebody_resumes_by_hand_is_left_to_them_and_the_others_are_done(tmp_path):
    study = begun(tmp_path / "s", seeded(0, 1))
    with study.run("seed0").locked(), pytest.warns(UserWarning, match="one by one: .*is being written by process"):
        work(study, Quiet(), Event())
    assert states(study) == ["waiting", "finished"]


def test_a_directory_of_another_run_is_told_of_it_and_the_others_are_done(tmp_path):
    study = begun(tmp_path / "s", seeded(0, 1))
    go(tiny(plan=replace(tiny().plan, sparsity=0.5)), study.run("seed1").path)
    study.run("seed1").summary.unlink()
    with pytest.warns(UserWarning, match="one by one.*holds another run"):
        work(study, Quiet(), Event())
    assert states(study) == ["finished", "failed"]


def test_a_run_that_cannot_be_gone_on_with_is_not_gone_on_with_in_company_either(tmp_path):
    study = begun(tmp_path / "s", seeded(0, 1))
    stop = Event()
    with pytest.raises(Interrupted):
        work(study, StopAt(100, stop), stop)
    study.run("seed1").original.unlink()
    with pytest.warns(UserWarning, match="one by one: .*is missing"):
        work(study, Quiet(), Event())
    assert states(study) == ["finished", "failed"]


def test_a_run_done_in_company_can_be_resumed_alone(alone, tmp_path):
    study = begun(tmp_path / "s", seeded(0, 1))
    stop = Event()
    with pytest.raises(Interrupted):
        work(study, StopAt(100, stop), stop)
    resume(study.run("seed1").path, Quiet(), Event())
    assert_same_outcome(alone["seed1"], study.run("seed1").path)


def test_the_file_says_so_and_a_study_of_before_this_option_does_not(tmp_path):
    file = tmp_path / "grid.toml"
    file.write_text("seeds_at_once = true\n[grid]\nseed = [0, 1]\n")
    assert Study.load(file).seeds_at_once
    file.write_text("seeds_at_once = 3\n[grid]\nseed = [0, 1]\n")
    with pytest.raises(SwampError, match=r"Expected `bool`, got `int` - at `\$.seeds_at_once`"):
        Study.load(file)
    study = begun(tmp_path / "s", seeded(0))
    assert StudyDirectory.open(study.path).seeds_at_once
    listed = json.loads((study.path / "study.json").read_text())
    old = {name: listed[name] for name in ("runs", "compare")}
    (study.path / "study.json").write_text(json.dumps(old))
    assert not StudyDirectory.open(study.path).seeds_at_once


def test_networks_start_at_their_own_weights(tmp_path):
    study = begun(tmp_path / "s", seeded(0, 1, plan=replace(tiny().plan, ticket_epochs=0)))
    work(study, Quiet(), Event())
    one, two = (load_tensors(study.run(name).ticket)[0] for name in study.runs)
    assert any((one[name] != two[name]).any() for name in one)
