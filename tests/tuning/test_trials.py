"""Workers of a tuning: what they train, stop, continue and never read."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from statistics import fmean
from threading import Event

import pytest

from swamp.errors import Interrupted, SwampError
from swamp.runs import execute
from swamp.runs.run_progress import Reporter
from swamp.runs.study_queue import StudyDirectory
from swamp.training import TensorData
from swamp.tuning import trials as trials_module
from swamp.tuning.search_space import parse_range
from swamp.tuning.trials import open_studies, reached_rungs, work_on_trials
from swamp.tuning.tuning_directory import TuningDirectory, TuningPlan
from swamp.tuning.tuning_results import best_trial, results_of, write_results

from .tunings import records, started, tiny_config, tiny_tuning, told, worked


class Unread(TensorData):
    """Data that raises when it is read."""

    def in_order(self, batch_size):
        raise AssertionError("the test data was read")


class StopAfter(Reporter):
    """Sets an event after a number of training steps of all trials."""

    def __init__(self, left: list[int], stop: Event) -> None:
        self.left, self.stop = left, stop

    def training(self, at):
        self.left[0] -= 1
        if self.left[0] == 0:
            self.stop.set()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> TuningDirectory:
    """Eight trials of one worker that nobody disturbed."""
    return worked(tmp_path_factory.mktemp("tuning") / "out", tiny_tuning(), trials=8)


@pytest.fixture
def unread_test_data(monkeypatch):
    """Test data that raises when it is read."""
    build = execute.build_problem

    def blind(*arguments):
        problem = build(*arguments)
        test = problem.task.test
        return replace(problem, task=replace(problem.task, test=Unread(test.inputs, test.targets)))

    monkeypatch.setattr(execute, "build_problem", blind)


@pytest.mark.slow
def test_a_tuning_has_as_many_trials_as_were_asked_for_and_the_first_is_the_recipe(finished):
    found = records(finished)
    assert [one.number for one in found] == list(range(8))
    assert all(one.ended for one in found)
    assert found[0].settings == {"lr": 0.1}
    assert len({one.settings["lr"] for one in found}) == 8
    for one in found:
        assert 0.01 <= one.settings["lr"] <= 1
        summary = finished.path / "swamp" / f"trial-{one.number:04d}" / "summary.json"
        assert summary.exists() == (one.state == "finished")


@pytest.mark.slow
def test_bad_trials_are_stopped_early_but_not_the_first_five(finished):
    found = records(finished)
    assert {one.state for one in found[:5]} == {"finished"}
    stopped = [one for one in found if one.state == "stopped"]
    assert stopped
    best = max(one.cycles[2] for one in found if one.state == "finished")
    for one in stopped:
        assert [*one.cycles] == [1, 2]
        assert one.value is None
        assert one.cycles[2] < best
        assert (finished.path / "swamp" / f"trial-{one.number:04d}" / "cycle-01" / "record.json").exists()
        assert not (finished.path / "swamp" / f"trial-{one.number:04d}" / "cycle-02").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "trials"), [("none", 8), ("hyperband", 12)])
def test_early_stopping_can_be_chosen(kind, trials, tmp_path):
    directory = worked(tmp_path / "out", tiny_tuning(early_stopping=kind, grace=1), trials=trials)
    states = {one.state for one in records(directory)}
    assert states == ({"finished"} if kind == "none" else {"finished", "stopped"})


def test_test_data_is_never_read(tmp_path, unread_test_data):
    directory = worked(tmp_path / "out", tiny_tuning(), trials=1)
    assert [one.state for one in records(directory)] == ["finished"]
    run = directory.path / "swamp" / "trial-0000"
    assert json.loads((run / "config.json").read_text())["test_data"] is False
    for line in (run / "metrics.jsonl").read_text().splitlines():
        cycle = json.loads(line)
        assert set(cycle["test"].values()) == {None}
        assert all(set(particle["test"].values()) == {None} for particle in cycle["particles"])
        assert cycle["validation"]["accuracy"] > 0.1


def test_the_guard_of_the_test_above_fails_a_run_that_reads_test_data(tmp_path, unread_test_data):
    with pytest.raises(AssertionError, match="the test data was read"):
        execute.start(tiny_config(), tmp_path / "run", Reporter(), Event())


@pytest.mark.slow
def test_trials_depend_on_the_seed_only(finished, tmp_path):
    again = worked(tmp_path / "out", tiny_tuning(), trials=3)
    assert told(records(again)) == told(records(finished))[:3]
    base = tiny_config()
    other = replace(tiny_tuning(), base=replace(base, plan=replace(base.plan, seed=1)))
    assert told(records(worked(tmp_path / "other", other, trials=2)))[1] != told(records(again))[1]


@pytest.mark.slow
def test_a_stopped_trial_continues_to_the_same_result(tmp_path):
    stop, left = Event(), [60]
    directory, storage = started(tmp_path / "out", tiny_tuning(), 1)
    with pytest.raises(Interrupted):
        work_on_trials(directory, storage, lambda *_: StopAfter(left, stop), stop)
    (running,) = records(directory)
    assert (running.state, [*running.cycles]) == ("running", [1])
    work_on_trials(directory, storage, lambda *_: Reporter(), Event())
    undisturbed = worked(tmp_path / "other", tiny_tuning(), trials=1)
    assert told(records(directory)) == told(records(undisturbed))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 301])
def test_a_stopped_tuning_continues_to_the_same_result(steps, finished, tmp_path):
    stop, left = Event(), [steps]
    directory, storage = started(tmp_path / "out", tiny_tuning(), 3)
    with pytest.raises(Interrupted):
        work_on_trials(directory, storage, lambda *_: StopAfter(left, stop), stop)
    assert "running" in {one.state for one in records(directory)}
    work_on_trials(directory, storage, lambda *_: Reporter(), Event())
    assert told(records(directory)) == told(records(finished))[:3]


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "seconds"), [("journal", 0.9), ("db", 1.7)])
def test_after_kill_9_at_any_moment_the_trial_is_continued_to_the_same_result(suffix, seconds, finished, tmp_path):
    storage = str(tmp_path / f"trials.{suffix}")
    directory, _ = started(tmp_path / "out", tiny_tuning(), 8, storage)
    pid = os.fork()
    if pid == 0:
        work_on_trials(directory, storage, lambda *_: Reporter(), Event())
        os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    work_on_trials(directory, storage, lambda *_: Reporter(), Event())
    assert told(records(directory, storage)) == told(records(finished))


def test_values_that_are_proposed_from_earlier_trials_depend_on_the_seed_only(tmp_path):
    tuning = tiny_tuning("lr=0.01..1:log", "particles=1,2,4")

    def drawn(folder: str) -> list[dict]:
        directory, storage = started(tmp_path / folder, tuning, 16)
        study, found = open_studies(directory, storage)["swamp"], []
        for number in range(16):
            if number == 12 and folder == "other":
                # As by a worker that continues.
                study = open_studies(directory, storage)["swamp"]
            record = study.draw({})
            study.finish(record.number, record.settings["lr"] / record.settings["particles"])
            found.append(dict(record.settings))
        return found

    one, other = drawn("one"), drawn("other")
    assert one == other
    # After ten trials, values lie where the metric was high.
    rates = [settings["lr"] for settings in one]
    assert fmean(rates[10:]) > fmean(rates[:10])


@pytest.mark.slow
def test_more_trials_can_be_asked_for_later(finished, tmp_path):
    directory = worked(tmp_path / "out", tiny_tuning(), trials=1)
    assert len(records(directory)) == 1
    directory = worked(tmp_path / "out", tiny_tuning(), trials=2)
    assert told(records(directory)) == told(records(finished))[:2]


@pytest.mark.slow
def test_methods_take_turns_and_have_the_same_number_of_trials(tmp_path):
    stop, left = Event(), [400]
    tuning = tiny_tuning("lr=0.05..0.5:log", methods=("imp", "swamp"))
    directory, storage = started(tmp_path / "out", tuning, 2)
    work_on_trials(directory, storage, lambda *_: StopAfter(left, stop), Event())
    studies = open_studies(directory, storage)
    assert [len(study.records()) for study in studies.values()] == [2, 2]
    runs = sorted(directory.path.glob("*/trial-*/config.json"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.parts[-3] for path in runs] == ["imp", "swamp", "imp", "swamp"]


@pytest.mark.slow
def test_a_diverging_trial_counts_as_the_worst_and_says_why(tmp_path):
    tuning = tiny_tuning("lr=1e25,1e30,0.1")
    directory, storage = started(tmp_path / "out", tuning, 4)
    work_on_trials(directory, storage, lambda *_: Reporter(), Event())
    found = records(directory)
    failed = [one for one in found if one.state == "failed"]
    assert failed
    assert len(found) == 4
    assert all(one.settings["lr"] > 1 and "diverged" in one.why for one in failed)
    assert best_trial(tuning, found).settings == {"lr": 0.1}


def test_a_tuning_whose_trials_all_fail_ends_with_the_reason(tmp_path):
    directory, storage = started(tmp_path / "out", tiny_tuning("lr=1e25,1e30"), 9)
    with pytest.raises(SwampError, match=r"all trials of swamp failed so far .3.. The last: .*diverged"):
        work_on_trials(directory, storage, lambda *_: Reporter(), Event())


def test_settings_that_no_run_can_have_together_are_drawn_again_and_do_not_count(tmp_path):
    # Four particles leave two epochs and eight leave one, which the warm-up does not fit into.
    tuning = tiny_tuning("particles=8,4,1", "warmup=2.5..3")
    directory = worked(tmp_path / "out", tuning, trials=1)
    found = records(directory)
    refused = [one for one in found if one.state == "refused"]
    assert refused
    assert all("warmup must be between 0 and epochs" in one.why for one in refused)
    assert sum(one.counts for one in found) == 1
    assert not (directory.path / "swamp" / f"trial-{refused[0].number:04d}").exists()


def test_ranges_without_a_possible_combination_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trials_module, "_MOST_REFUSED", 5)
    config = tiny_config()
    ranges = (parse_range("particles=2,3", config), parse_range("lr=0.1,0.2", config))
    directory, storage = started(tmp_path / "out", TuningPlan(config, ("swamp",), ranges[:1], "accuracy", True), 2)
    study = open_studies(directory, storage)["swamp"]
    monkeypatch.setattr(TuningPlan, "trial", lambda *_: (_ for _ in ()).throw(SwampError("never possible.")))
    with pytest.raises(SwampError, match=r"5 settings in a row that the ranges allow are not possible.*never possible"):
        work_on_trials(directory, storage, lambda *_: Reporter(), Event())
    assert {one.state for one in study.records()} == {"refused"}


def test_a_trial_of_a_living_worker_is_left_alone(tmp_path):
    directory, storage = started(tmp_path / "out", tiny_tuning(), 1)
    study = open_studies(directory, storage)["swamp"]
    study.draw({"folder": directory.identity, "worker": "here:1"})
    with StudyDirectory(directory.path / "swamp", {}).claimed("trial-0000") as mine:
        assert mine
        work_on_trials(directory, storage, lambda *_: Reporter(), Event())
        assert [one.state for one in study.records()] == ["running"]
    work_on_trials(directory, storage, lambda *_: Reporter(), Event())
    assert [one.state for one in study.records()] == ["finished"]


@pytest.mark.slow
def test_a_trial_whose_worker_and_run_directory_are_gone_is_trained_again(tmp_path, monkeypatch):
    directory, storage = started(tmp_path / "here", tiny_tuning(), 2, str(tmp_path / "shared.journal"))
    study = open_studies(directory, storage)["swamp"]
    lost = study.draw({"folder": "of another machine", "worker": "there:1"})
    work_on_trials(directory, storage, lambda *_: Reporter(), Event())
    assert [one.state for one in study.records()] == ["running", "finished"]
    monkeypatch.setattr(trials_module, "_GONE_SECONDS", -1.0)
    work_on_trials(directory, storage, lambda *_: Reporter(), Event())
    found = study.records()
    assert [one.state for one in found] == ["refused", "finished", "finished"]
    assert found[2].settings == lost.settings
    assert "its worker ended" in found[0].why


def test_of_two_workers_that_draw_the_last_trial_at_once_one_gives_it_back(tmp_path):
    directory, storage = started(tmp_path / "out", tiny_tuning(), 1)
    study = open_studies(directory, storage)["swamp"]
    worker = trials_module._Worker(directory, {"swamp": study}, lambda *_: Reporter(), Event())
    count = worker._count
    asked = []

    def before_the_other_draws(found):
        asked.append(len(found))
        if len(asked) == 1:
            other = open_studies(directory, storage)["swamp"]
            other.draw({"folder": "another", "worker": "there:1"})
            return 0
        return count(found)

    worker._count = before_the_other_draws
    assert worker.draw_one()
    assert [one.state for one in study.records()] == ["running", "refused"]


def test_a_folder_of_another_storage_is_not_continued(tmp_path):
    directory = worked(tmp_path / "out", tiny_tuning(), trials=1)
    (directory.path / "trials.journal").unlink()
    other = tiny_tuning("lr=0.2..0.9")
    with pytest.raises(SwampError, match=r"holds another tuning. It differs in --search lr: 0.01..1:log -> 0.2..0.9"):
        TuningDirectory.join(directory.path, other, directory.storage, 1)
    with pytest.raises(SwampError, match=r"are recorded in .*journal, and --storage is elsewhere"):
        TuningDirectory.join(directory.path, directory.tuning, "elsewhere", 1)
    config = directory.path / "swamp" / "trial-0000" / "config.json"
    values = json.loads(config.read_text())
    values["training"]["lr"] = 0.7
    config.write_text(json.dumps(values))
    with pytest.raises(SwampError, match=r"holds the run of another trial .training.lr: 0.7 -> 0.1"):
        worked(directory.path, directory.tuning, trials=1)


def test_trials_with_other_cycles_are_compared_at_the_same_sparsities():
    rungs = (1.0, 0.5, 0.25, 0.125)
    assert [*reached_rungs(rungs, rungs, [0.9])] == [(1, 0.9)]
    assert [*reached_rungs(rungs, rungs, [0.9, 0.8])] == [(2, 0.8)]
    finer = (1.0, 0.707, 0.4, 0.2)
    assert [*reached_rungs(rungs, finer, [0.9, 0.8])] == []
    ((number, value),) = reached_rungs(rungs, finer, [0.9, 0.8, 0.7])
    assert number == 2
    assert 0.7 < value < 0.8
    coarse = (1.0, 0.125)
    found = [*reached_rungs(rungs, coarse, [0.9, 0.6])]
    assert found == [(2, pytest.approx(0.8)), (3, pytest.approx(0.7)), (4, pytest.approx(0.6))]


@pytest.mark.slow
def test_the_best_configuration_the_table_and_the_picture_are_written(finished):
    results = results_of(finished.tuning, open_studies(finished, finished.storage))
    files = write_results(finished, results)
    (config,), (table,), pictures = files["configs"], files["tables"], files["pictures"]
    best = best_trial(finished.tuning, records(finished))
    assert execute.RunConfig.load(config) == finished.tuning.best("swamp", best.settings)
    lines = table.read_text().splitlines()
    assert lines[0] == "method,trial,state,accuracy,lr,epochs,cost,cycles,seconds,why"
    assert len(lines) == 9
    assert {path.suffix for path in pictures} == {".png", ".svg"}
    drawn = next(path for path in pictures if path.suffix == ".svg").read_text()
    assert "swamp, best so far" in drawn
    assert "validation accuracy (%)" in drawn
    assert results[0].importance == {"lr": 1.0}


def test_without_optuna_the_command_says_what_to_install(monkeypatch, capsys, tmp_path):
    from swamp import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit):
        cli.main(["tune", "digits-mlp", "--search", "lr"])
    assert "pip install 'swamp[tune]'" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
