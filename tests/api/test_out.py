"""A call from Python with a run directory: resumed with the same bits, refused for anything else, read by commands."""

import json
import os
import shutil
import signal
import threading
from dataclasses import replace

import pytest
import torch
from tests.api.conftest import OPTIONS, TRAINING, examples, network
from tests.runs.conftest import assert_same_outcome, in_child
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

import swamp
from swamp.api import origin, python_run
from swamp.backends import Sequential
from swamp.cli import main
from swamp.errors import CorruptFile
from swamp.files import load_tensors
from swamp.runs import open_run
from swamp.scores import SCORES


def pruned(path, **changes):
    return swamp.prune(network(), examples(), out=path, backend="sequential", **(OPTIONS | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole") / "run"
    pruned(path)
    return path


def frozen(model: nn.Module) -> nn.Module:
    model[0].weight.requires_grad_(False)
    return model


def same(a: swamp.SparseModel, b: swamp.SparseModel) -> bool:
    one, two = a.model.state_dict(), b.model.state_dict()
    return a.mask == b.mask and all(torch.equal(one[name], two[name]) for name in one)


def test_the_result_is_that_of_the_call_without_a_directory(tmp_path):
    plain = swamp.prune(network(), examples(), backend="sequential", **OPTIONS)
    kept = pruned(tmp_path / "run")
    assert same(plain, kept)
    assert same(plain, swamp.load_run(tmp_path / "run", network(number=1)))


def test_a_run_with_a_score_of_ones_own_is_read_where_the_score_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setitem(SCORES, "mine", SCORES["magnitude"])
    kept = pruned(tmp_path / "run", score="mine")
    assert same(kept, pruned(tmp_path / "run", score="mine"))
    monkeypatch.delitem(SCORES, "mine")
    assert same(kept, swamp.load_run(tmp_path / "run", network(number=1)))
    _, config = open_run(tmp_path / "run")
    assert config.plan.score == "python:mine"
    with pytest.raises(swamp.SwampError, match="unknown score 'mine'"):
        next(swamp.cycles(network(), examples(), config.plan, config.training))


def test_a_run_that_lacks_a_record_is_not_loaded_as_one_of_fewer_cycles(whole, tmp_path):
    damaged = shutil.copytree(whole, tmp_path / "run")
    (damaged / "cycle-01" / "record.json").unlink()
    with pytest.raises(CorruptFile, match=r"cycle-01/record.json is missing"):
        swamp.load_run(damaged, network())


def test_the_same_call_again_reads_everything_from_disk(tmp_path, monkeypatch):
    first = pruned(tmp_path / "run")
    monkeypatch.setattr(Sequential, "train", lambda *_, **__: pytest.fail("trained again"))
    seen = []
    assert same(first, pruned(tmp_path / "run", on_cycle=seen.append))
    assert [cycle.index for cycle in seen] == [0, 1, 2]


def signalled(path, at: int, number: int):
    """The same call, in which this process gets a signal in its step `at`."""
    steps = iter(range(1, at + 1))

    def count(*_):
        if next(steps, None) == at:
            os.kill(os.getpid(), number)

    hook = register_optimizer_step_pre_hook(count)
    try:
        return pruned(path)
    finally:
        hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 17, 90])
def test_a_killed_call_continues_with_the_same_bits(whole, tmp_path, every_step, at):
    pid = in_child(lambda: signalled(tmp_path / "killed", at, signal.SIGKILL))
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    pruned(tmp_path / "killed")
    assert_same_outcome(whole, tmp_path / "killed")


@pytest.fixture
def default_handler():
    """Python's own handler of Ctrl-C: a process that pytest started in the background ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.fast_cases(1)
@pytest.mark.usefixtures("default_handler")
@pytest.mark.parametrize("at", [3, 9, 23])
def test_ctrl_c_saves_the_step_and_the_same_call_continues_with_the_same_bits(whole, tmp_path, at):
    with pytest.raises(KeyboardInterrupt, match=r"stopped and saved in .*; the same call again continues"):
        signalled(tmp_path / "run", at, signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = pruned(tmp_path / "run")
    assert same(again, swamp.load_run(whole, network()))
    assert_same_outcome(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_handler_of_the_caller_stays_in_place_and_another_thread_can_prune(tmp_path):
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        own = signal.getsignal(signal.SIGINT)
        pruned(tmp_path / "run", on_cycle=lambda _: seen.append(signal.getsignal(signal.SIGINT) is own))
    finally:
        signal.signal(signal.SIGINT, before)
    assert all(seen)
    thread = threading.Thread(target=lambda: pruned(tmp_path / "other"))
    thread.start()
    thread.join()
    assert_same_outcome(tmp_path / "run", tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 0.8}, r"plan.sparsity: 0.75 -> 0.8"),
        ({"training": replace(TRAINING, lr=0.2)}, r"training.lr: 0.1 -> 0.2"),
        ({"model": network(number=1)}, r"the initial weights: seed them \(torch.manual_seed"),
        ({"model": network(width=8)}, r"model.parameters.0.weight: \[16, 6\] -> \[8, 6\]"),
        ({"task": examples(number=1)}, r"task.train.digest"),
        ({"task": replace(examples(), validation=None)}, r"task.validation"),
        ({"task": replace(examples(), metrics={"accuracy": lambda a, b: 0.5})}, r"task.metrics"),
        (
            {"model": network(activation=nn.Tanh)},
            r"model.modules.2: ReLU\(\) \w{8} -> Tanh\(\) \w{8}. To continue",
        ),
        ({"model": frozen(network())}, r"model.frozen: \[\] -> \['0.weight'\]. To continue"),
        ({"task": replace(examples(), forward=lambda model, x: model(-x))}, r"task.functions.forward: call_model"),
        (
            {"task": replace(examples(), train=replace(examples().train, augment=lambda x, _: -x))},
            r"task.functions.train augment: None -> <lambda> \w{8}. To continue",
        ),
    ],
)
def test_another_call_is_refused_with_what_differs(tmp_path, change, message):
    path = tmp_path / "run"
    swamp.prune(network(), examples(), out=path, **OPTIONS)
    before = sorted(path.rglob("*"))
    given = {"model": network(), "task": examples(), **OPTIONS, **change}
    with pytest.raises(swamp.SwampError, match=message):
        swamp.prune(given.pop("model"), given.pop("task"), out=path, **given)
    assert sorted(path.rglob("*")) == before


def scaled_loss(scale: float):
    return lambda outputs, targets: scale * F.cross_entropy(outputs, targets)


def test_a_loss_of_the_same_name_is_refused_if_it_computes_something_else(tmp_path):
    def run(loss):
        return swamp.prune(network(), replace(examples(), loss=loss), out=tmp_path / "run", **OPTIONS)

    run(scaled_loss(1.0))
    run(scaled_loss(1.0))
    with pytest.raises(swamp.SwampError, match=r"task.functions.loss: scaled_loss.<locals>.<lambda> (\w+) -> (?!.*\1)"):
        run(scaled_loss(2.0))


def test_a_score_of_the_same_name_is_refused_if_it_computes_something_else(tmp_path, monkeypatch):
    def score(sign):
        return lambda model, mask, context: {name: sign * model.get_parameter(name).abs() for name in mask}

    monkeypatch.setitem(SCORES, "mine", score(1))
    pruned(tmp_path / "run", score="mine")
    monkeypatch.setitem(SCORES, "mine", score(-1))
    with pytest.raises(swamp.SwampError, match="differs in score: "):
        pruned(tmp_path / "run", score="mine")


def test_a_directory_of_another_version_is_continued_without_comparing_code(tmp_path, monkeypatch):
    monkeypatch.setattr(origin, "__version__", "9")
    pruned(tmp_path / "run")
    monkeypatch.undo()
    pruned(tmp_path / "run")  # entries that depend on versions are equal here; the next two differ
    swamp.prune(network(activation=nn.Tanh), examples(), out=tmp_path / "run", backend="sequential", **OPTIONS)
    with pytest.raises(swamp.SwampError, match=r"differs in model.frozen: \[\] -> \['0.weight'\]"):
        swamp.prune(frozen(network()), examples(), out=tmp_path / "run", backend="sequential", **OPTIONS)


def test_a_directory_that_lacks_the_entries_is_continued(tmp_path, monkeypatch):
    described = origin.describe

    def before(*given):
        about = described(*given)
        del about["versions"], about["task"]["functions"], about["model"]["modules"], about["model"]["frozen"]
        return about

    monkeypatch.setattr(python_run, "describe", before)
    first = pruned(tmp_path / "run")
    monkeypatch.undo()
    assert same(first, pruned(tmp_path / "run"))


def test_the_initial_weights_of_a_run_can_be_loaded_to_continue_it(tmp_path):
    pruned(tmp_path / "run")
    other = network(number=1)
    other.load_state_dict(load_tensors(tmp_path / "run" / "initial.safetensors")[0])
    swamp.prune(other, examples(), out=tmp_path / "run", backend="sequential", **OPTIONS)


def test_a_folder_with_other_files_and_an_impossible_call_leave_no_trace(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(swamp.SwampError, match="is not empty and holds no run"):
        pruned(tmp_path)
    with pytest.raises(swamp.SwampError, match="is a file"):
        pruned(tmp_path / "photo.jpg")
    with pytest.raises(swamp.SwampError, match="unknown method"):
        pruned(tmp_path / "new", method="magic")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_cycles_are_yielded_from_the_directory_and_can_be_left_early(whole, tmp_path):
    plan = swamp.Plan(sparsity=0.75, particles=(2,), prune_fraction=(0.5,), barrier_threshold=1.0)
    found = swamp.cycles(network(), examples(), plan, TRAINING, out=tmp_path / "run", backend="sequential")
    assert next(found).index == 0
    found.close()
    again = list(swamp.cycles(network(), examples(), plan, TRAINING, out=tmp_path / "run", backend="sequential"))
    assert [cycle.index for cycle in again] == [0, 1, 2]
    assert_same_outcome(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_commands_read_the_directory(tmp_path, capsys):
    pruned(tmp_path / "swamp")
    with pytest.warns(UserWarning, match="particles has no effect: imp trains one particle"):
        pruned(tmp_path / "imp", method="imp")
    main(["compare", str(tmp_path / "swamp"), str(tmp_path / "imp"), "--out", str(tmp_path / "c"), "--json"])
    assert set(json.loads(capsys.readouterr().out)["labels"]) >= {"imp"}
    main(["report", str(tmp_path / "swamp"), "-o", str(tmp_path / "report.html")])
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("command", ["resume", "export", "analyze", "noise"])
def test_a_command_that_needs_the_model_says_how_to_give_it(tmp_path, capsys, command):
    pruned(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        main([command, str(tmp_path / "run")])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "was started from Python" in told
    assert ("swamp.prune(..., out=...)" if command == "resume" else "--model package.module:function") in told


@pytest.mark.slow
def test_commands_take_the_functions_that_make_model_and_task(tmp_path, capsys):
    sparse = pruned(tmp_path / "run")
    path = str(tmp_path / "run")
    model, task = (f"tests.api.conftest:{name}" for name in ("network", "examples"))
    main(["analyze", path, "--model", model, "--task", task, "--only", "masks", "--quiet"])
    main(["export", path, "--model", model])
    exported = swamp.load(tmp_path / "run" / "export.safetensors")
    x = torch.randn(4, 6)
    assert torch.allclose(exported(x), sparse.model.eval()(x), atol=1e-5)
    main(["benchmark", str(tmp_path / "run" / "export.safetensors"), "--seconds", "0.01", "--runtimes", "torch"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["export", path, "--model", "tests.api.conftest:other_network"])
    assert "is not the model of" in capsys.readouterr().err


def stream(number: int):
    """Batches without end, of a seed."""
    generator = torch.Generator().manual_seed(number)
    while True:
        x = torch.randn(16, 6, generator=generator)
        yield {"x": x, "y": x[:, :3].argmax(1)}


def own_loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def own_evaluate(model):
    batch = next(stream(99))
    return {"error": float((model(batch["x"]).argmax(1) != batch["y"]).float().mean())}


def custom_task() -> swamp.Task:
    return swamp.Task.custom(stream, own_loss, own_evaluate, steps_per_epoch=4)


@pytest.mark.slow
def test_a_task_of_two_functions_and_a_stream_is_resumed_with_the_same_bits(tmp_path, capsys):
    plain = swamp.prune(network(), custom_task(), backend="sequential", **OPTIONS)
    plan = swamp.Plan(sparsity=0.75, particles=(2,), prune_fraction=(0.5,), barrier_threshold=1.0)
    begun = swamp.cycles(network(), custom_task(), plan, TRAINING, out=tmp_path / "run", backend="sequential")
    next(begun)
    begun.close()
    kept = swamp.prune(network(), custom_task(), out=tmp_path / "run", backend="sequential", **OPTIONS)
    assert same(plain, kept)
    other = swamp.Task.custom(stream, own_loss, lambda model: {"error": 0.5}, steps_per_epoch=4)
    with pytest.raises(swamp.SwampError, match=r"task.evaluate: own_evaluate -> .*lambda"):
        swamp.prune(network(), other, out=tmp_path / "run", backend="sequential", **OPTIONS)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["task"] == "python:own_loss"
    given = "--model tests.api.conftest:network --task tests.api.test_out:custom_task --epochs 2 --sparsity 0.5"
    main(["run", *given.split(), "--cycles", "1", "--device", "cpu", "--quiet", "--out", str(tmp_path / "cli")])
    assert "error" in json.loads((tmp_path / "cli" / "summary.json").read_text())["test"]
    capsys.readouterr()
