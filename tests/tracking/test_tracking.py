"""Trackers receive what a run logs; whatever they do, the run ends with the same bits."""

import json
import os
import threading
import time
import warnings
from threading import Event
from unittest import mock

import pytest
import torch
from tests.api.conftest import OPTIONS, examples, network
from tests.runs.conftest import StopAt, assert_same_outcome, go, tiny
from tests.tracking.conftest import Recorded

import swamp
from swamp.cli import main
from swamp.errors import Interrupted
from swamp.runs.execute import resume, start
from swamp.runs.run_progress import Reporter, Reporters, TrainingStep
from swamp.tracking import feed, tracking_reporter
from swamp.tracking.tracker import Tracker, chosen_trackers
from swamp.tracking.tracking_reporter import TrackingReporter, tracked


def prune(**changes):
    return swamp.prune(network(), examples(), backend="sequential", **(OPTIONS | changes))


def same(one, two) -> bool:
    return one.mask == two.mask and all(
        torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True)
    )


@pytest.fixture(autouse=True)
def own_folder_and_few_figures(request, tmp_path, monkeypatch):
    """Drawing takes as long as training: one test draws."""

    def draw_one(run, folder):
        (folder / "accuracy.png").write_bytes(b"\x89PNG")
        return {"accuracy": folder / "accuracy.png"}

    monkeypatch.chdir(tmp_path)
    if "figures" not in request.node.name:
        monkeypatch.setattr("swamp.report.write.draw_run", draw_one)


@pytest.mark.slow
def test_a_tracker_receives_losses_rates_cycles_figures_the_model_and_the_end(recorded):
    sparse = prune(track=recorded)
    assert recorded.run.config["plan.sparsity"] == OPTIONS["sparsity"]
    steps = [step for step, _ in recorded.rows("loss/particle-1")]
    assert [step for step, _ in recorded.rows("lr/particle-1")] == steps
    # A particle has at most 100 points, its last step is one, and cycles follow each other on one axis.
    per_cycle = sparse.cycles[0].particles[0].steps
    assert {per_cycle * (cycle + 1) for cycle in range(3)} <= {step - min(steps) + 1 for step in steps}
    last = [value for step, value in recorded.rows("loss/particle-1") if step == max(steps)]
    assert last == [pytest.approx(sparse.cycles[-1].particles[1].loss)]
    assert [value for _, value in recorded.rows("sparsity")] == [cycle.sparsity for cycle in sparse.cycles]
    (*_, (_, _, values)) = [call for call in recorded.calls if call[0] == "log" and "cycle" in call[2]]
    cycle = sparse.cycles[-1]
    assert values["test/accuracy"] == cycle.metrics.test["accuracy"]
    assert values["barrier/pair"] == cycle.barrier.pair
    assert (values["cost/steps"], values["total/flops"]) == (cycle.cost.steps, cycle.total.flops)
    assert recorded.calls[-5:] == [
        ("image", "accuracy"),
        ("image", "particles"),
        ("image", "cost"),
        ("artifact", "model"),
        ("finish", "finished"),
    ]
    assert {"config.json", "mask.safetensors", "model.safetensors"} <= {*recorded.files["model"]}


@pytest.mark.parametrize(("method", "count"), [("swamp", 2), ("imp", 1)])
def test_retraining_a_mask_is_tracked_too_and_has_the_same_bits(recorded, method, count):
    mask = prune().mask
    ticket = swamp.Ticket(network().state_dict(), 0)
    how = {"training": OPTIONS["training"], "backend": "sequential", "particles": count}
    how |= {"barrier_threshold": 1.0} if count > 1 else {}
    plain, sparse = (
        swamp.retrain(network(), examples(), ticket, mask, method=method, **how, **more)
        for more in ({}, {"track": recorded})
    )
    assert same(plain, sparse)
    steps = sparse.cycles[0].particles[0].steps
    assert [step for step, _ in recorded.rows(f"loss/particle-{count - 1}")] == [*range(1, steps + 1)]
    assert not list(recorded.rows(f"loss/particle-{count}"))
    assert recorded.rows("sparsity") == [(steps, sparse.mask.sparsity)]
    assert recorded.calls[-2:] == [("artifact", "model"), ("finish", "finished")]


def test_retraining_refuses_what_is_no_tracker_before_any_work():
    ticket, mask = swamp.Ticket(network().state_dict(), 0), prune().mask
    with pytest.raises(swamp.SwampError, match="Did you mean tensorboard"):
        swamp.retrain(network(), examples(), ticket, mask, track="tensorbord")


def test_a_text_without_a_name_is_refused():
    with pytest.raises(swamp.SwampError, match="track=',' names no tracker"):
        chosen_trackers(",")
    assert chosen_trackers("") == ()


def test_the_learning_rate_is_that_of_the_step(recorded):
    prune(track=recorded)
    ticket, found = len(recorded.rows("lr/ticket")), recorded.rows("lr/particle-0")
    steps = [(ticket + step + 1, OPTIONS["training"].rate(step, 4)) for step in range(16)]
    assert found[:16] == steps


@pytest.mark.slow
def test_the_run_has_the_same_bits_with_a_tracker_and_with_one_that_fails(recorded):
    class Failing(Recorded):
        def __init__(self, call):
            super().__init__()
            setattr(self, call, self.fail)

        def fail(self, *arguments):
            raise RuntimeError("the server is gone")

    plain = prune()
    assert same(prune(track=recorded), plain)
    for call in ("start", "log", "image", "artifact", "finish"):
        with pytest.warns(UserWarning, match="tracker Failing is lost.*the server is gone") as told:
            assert same(prune(track=[Failing(call), other := Recorded()]), plain)
        assert len(told) == 1
        assert other.calls[-1] == ("finish", "finished")


def test_a_lost_tracker_ends_no_run_where_warnings_are_errors(recorded):
    recorded.log = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(track=recorded)


def test_a_full_disk_ends_tracking_but_not_the_run(recorded, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking_reporter, "save_tensors", full)
    with pytest.warns(UserWarning, match="not tracked any more.*No space left"):
        assert prune(track=recorded).sparsity > 0
    assert recorded.calls[-1] == ("finish", "finished")


@pytest.mark.parametrize("out", [None, "run"])
def test_trackers_write_to_one_folder_wherever_the_process_goes(recorded, out, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    prune(track=recorded, out=out, on_cycle=lambda cycle: os.chdir(tmp_path / "elsewhere"))
    assert recorded.run.folder.is_absolute()
    assert json.loads((recorded.run.folder / "state.json").read_text())["Recorded"]["cycles"] == 3
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_slow_tracker_delays_no_step_and_points_above_the_limit_are_left_out(monkeypatch):
    monkeypatch.setattr(feed, "MOST_WAITING", 5)
    trained = threading.Event()

    class Slow(Recorded):
        def log(self, values, step):
            trained.wait(60)
            super().log(values, step)

    slow = Slow()
    with pytest.warns(UserWarning, match="too slow for [0-9]+ of [0-9]+ points"):
        prune(track=slow, on_cycle=lambda cycle: trained.set() if cycle.index == 2 else None)
    assert [value for _, value in slow.rows("cycle")] == [0, 1, 2]  # cycles are never left out


def test_a_tracker_that_never_returns_is_left_after_a_time(monkeypatch):
    monkeypatch.setattr(tracking_reporter, "FINISH_SECONDS", 0.2)
    never = threading.Event()

    class Hanging(Recorded):
        def start(self, run):
            never.wait()

    with pytest.warns(UserWarning, match="tracker Hanging is lost.*still waiting"):
        prune(track=Hanging())
    never.set()


@pytest.mark.slow
def test_an_interrupted_run_continues_the_tracked_run_and_logs_no_cycle_twice(tmp_path):
    config, plain, path, stop = tiny(), tmp_path / "plain", tmp_path / "run", Event()
    go(config, plain)
    first, second = Recorded(), Recorded()
    first.__class__.__name__ = "Recorded"
    shown = Reporters(StopAt(100, stop), TrackingReporter([first], config, path))
    with pytest.raises(Interrupted), shown:
        start(config, path, shown, stop)
    assert first.calls[-1] == ("finish", "stopped")
    with TrackingReporter([second], config, path) as again:
        resume(path, again, Event())
    assert second.calls[0] == ("start", "id-1")
    cycles = [value for one in (first, second) for _, value in one.rows("cycle")]
    assert cycles == [0, 1, 2]
    assert_same_outcome(plain, path)


def test_a_damaged_state_starts_a_new_tracked_run(tmp_path, recorded):
    (tmp_path / "out" / "tracking").mkdir(parents=True)
    (tmp_path / "out" / "tracking" / "state.json").write_text('{"Recorded": ')
    with TrackingReporter([recorded], tiny(), tmp_path / "out") as reporter:
        go_in(tmp_path / "run", reporter)
    assert recorded.calls[0] == ("start", "")


def go_in(path, reporter):
    start(tiny(), path, reporter, Event())


@pytest.mark.parametrize("given", [Tracker, 3, object(), ["tensorbord"]])
def test_what_is_no_tracker_is_refused_before_any_work(given):
    with pytest.raises(swamp.SwampError, match=r"track.*(Tracker|tensorboard)"):
        prune(track=given)


def test_a_missing_library_is_refused_with_the_extra_and_exit_code_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        main(["run", "digits-mlp", "--track", "wandb", "--out", str(tmp_path / "run")])
    assert end.value.code == 2
    assert "pip install 'swamp[wandb]'" in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match="Continuing without trackers"):
        assert type(tracked(Reporter(), tiny(track="wandb"), tmp_path, resumed=True)) is Reporter


def test_trackers_are_given_several_times_or_separated_by_commas(trackio_stand_in, tmp_path, capsys):
    read = trackio_stand_in()
    path = tmp_path / "run"
    arguments = ["--epochs", "2", "--cycles", "2", "--ticket-epochs", "0", "--examples", "128", "--quiet", "--json"]
    main(["run", "digits-mlp", "--track", "trackio", "--track", "trackio,trackio", *arguments, "--out", str(path)])
    assert json.loads((path / "config.json").read_text())["track"] == "trackio,trackio,trackio"
    calls = [call[1] for call in read()]
    assert calls.count("init") == 1  # each tracker once
    assert (calls[0], calls[-2:]) == ("init", ["artifact", "finish"])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["cycles"]  # the library's lines are not on standard output
    assert "printed by the library" in (path / "tracking" / "trackio.log").read_text()


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("if count == 3: raise RuntimeError('no route to host')", "RuntimeError: no route to host"),
        ("if count == 3: os.kill(os.getpid(), 9)", "its process ended with code -9"),
    ],
)
def test_a_tracker_process_that_fails_or_is_killed_ends_no_run(trackio_stand_in, broken, why):
    trackio_stand_in(broken)
    with pytest.warns(UserWarning, match=f"tracker trackio is lost.*{why}"):
        tracked_run = prune(track="trackio")
    assert same(tracked_run, prune())


def test_a_tracker_process_ends_when_the_run_is_killed(trackio_stand_in, tmp_path):
    read = trackio_stand_in()
    from swamp.tracking.tracker import TrackedRun
    from swamp.tracking.tracker_process import TrackerProcess

    process = TrackerProcess("trackio")
    process.start(TrackedRun("run", {"plan.seed": 0}, tmp_path))
    process.process.stdin.close()  # as the kernel does for a process that was killed
    assert process.process.wait(60) == 0
    assert read()[-1][1] == "finish"
    process.kill()


def test_events_reach_every_reporter():
    first, second = mock.Mock(Reporter), mock.Mock(Reporter)
    events = [name for name in vars(Reporter) if not name.startswith("_")]
    for event in events:
        getattr(Reporters(first, second), event)(event, once=True)
    assert len(events) == 6
    assert (
        first.method_calls == second.method_calls == [getattr(mock.call, event)(event, once=True) for event in events]
    )


def test_slow_trainings_have_a_point_every_ten_seconds(monkeypatch):
    points = []
    reporter = TrackingReporter([], tiny(), None)
    monkeypatch.setattr(reporter, "_point", lambda *arguments: points.append(arguments[0].step))
    now = iter(range(0, 10_000, 6))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    for step in range(1, 8):
        reporter.training(TrainingStep(0, 0, 1, step, 1_000_000))
    assert points == [3, 5, 7]
