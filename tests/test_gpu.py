"""Whatever runs on a GPU has its tensors there, gives what it gives on the CPU, and takes its steps without waiting."""

import copy
from contextlib import suppress
from dataclasses import replace
from threading import Event

import pytest
import torch
from torch import nn

import swamp
from swamp import cli
from swamp.algorithms import Cycle, Plan
from swamp.backends import Progress, Sequential, Ticket, TrainRequest, Vmapped
from swamp.backends.vmapped import MultiStream
from swamp.datasets import build_network
from swamp.datasets.problem import DataOptions
from swamp.errors import Interrupted
from swamp.masks import Mask
from swamp.runs.config import RunConfig
from swamp.runs.execute import resume, start
from swamp.runs.run_progress import Reporter
from swamp.runtime.archive import save
from swamp.runtime.tracing import bake_mask, trace
from swamp.training import Seed, Task, TensorData, Training, crop_flip
from swamp.training.mask_updates import Dynamic
from swamp.training.rng import isolated
from swamp.training.snapshot import Snapshot

from .gpu import CUDA, OnGpu, pretended, waits

TRAINING = Training(epochs=2, batch_size=15, lr=0.05, swa_fraction=0.5)
PLAN = Plan(sparsity=0.6, prune_fraction=(0.4,), particles=(2,), ticket_epochs=1, barrier_threshold=9.0)
PLAN = replace(PLAN, dynamic=Dynamic(update_interval=1))
SHORT = replace(PLAN, sparsity=0.4, barrier_points=3)
"""One pruning instead of two."""
METHODS = ["swamp", "imp-sam", "lottery-pools", "sms-greedy", "one-shot-fisher", "grasp", "synflow", "rigl-swamp-own"]
OPTIONS = [{}, {"optimizer": "adamw", "lr": 0.01}, {"sam": 0.1, "clip": 0.05}, {"sam": 0.1, "sharpness": "s2-sam"}]


@pytest.fixture
def gpu(monkeypatch):
    with pretended(monkeypatch):
        yield


@pytest.fixture
def images() -> Task:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(60, 1, 4, 4, generator=generator, dtype=torch.float64)
    targets = torch.arange(60) % 3
    train = TensorData(inputs, targets, crop_flip(1), lambda x: 2 * x)
    return Task(train, TensorData(inputs + 0.1, targets), TensorData(inputs - 0.1, targets))


def network(name: str) -> nn.Module:
    with isolated(Seed(0).at("init")):
        if name == "encoder":
            layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
            return nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten(), nn.Linear(16, 3)).double()
        if name == "normed":
            parts = nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
            return nn.Sequential(nn.Flatten(), *parts).double()
        return build_network(name, (1, 4, 4), 3).double()


def assert_the_same_on_a_gpu(model: nn.Module, task: Task, plan: Plan, backend: str) -> None:
    training = replace(TRAINING, batch_size=30)
    expected = list(swamp.cycles(model, task, plan, training, backend="sequential"))
    found = list(swamp.cycles(copy.deepcopy(model).to(CUDA), task, plan, training, backend=backend))
    assert_the_same_but_there(found, expected)


def assert_the_same_but_there(found: list[Cycle], expected: list[Cycle]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.mask == other.mask
        for name, weight in other.weights.items():
            assert isinstance(one.weights[name], OnGpu), name
            assert torch.allclose(one.weights[name].cpu(), weight, rtol=0, atol=1e-10), name


def test_the_pretended_gpu_is_as_strict_as_one(gpu):
    there, here = torch.ones(3).to("cuda"), torch.ones(3)
    assert there.device == CUDA
    assert (there + 1).device == CUDA
    assert type(there.cpu()) is torch.Tensor
    for wrong in (lambda: there + here, lambda: torch.stack([there, here]), lambda: there.mul_(here)):
        with pytest.raises(RuntimeError, match="found some on the CPU"):
            wrong()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    for waiting in (lambda: float(there.sum()), lambda: there[there > 0], lambda: here.to(CUDA), lambda: there.cpu()):
        waits.clear()
        waiting()
        assert waits.total()
    waits.clear()
    there[torch.tensor([0, 2])].add_(1.0).sum()
    assert not waits


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("method", METHODS)
def test_methods(method, images, gpu):
    assert_the_same_on_a_gpu(network("normed"), images, replace(SHORT, method=method), "sequential")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "name"), [("sequential", "resnet-8"), ("vmapped", "encoder"), ("multi-stream", "normed")]
)
def test_backends(backend, name, images, gpu):
    assert_the_same_on_a_gpu(network(name), images, SHORT, backend)


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: "-".join(map(str, option.values())) or "plain")
@pytest.mark.parametrize("backend", [Sequential, Vmapped, MultiStream])
def test_no_step_waits_for_the_gpu(backend, option, images, gpu):
    """Neither does one that a CUDA graph captures read or copy anything, which would end the capture."""
    model = network("normed").to(CUDA)
    before: list[dict[str, int]] = []

    class Watching(Progress):
        def on_step(self, index, step, total, snapshot):
            if index == 0:
                before.append(dict(waits))
                waits.clear()

    training = Training(epochs=1, batch_size=10, swa_fraction=0, swa=False, **option)
    seeds = [(0, Seed(0)), (1, Seed(1))]
    mask = Mask({name: torch.arange(p.numel()).view(p.shape) % 3 > 0 for name, p in Mask.ones(model).items()})
    backend(model, images).train(
        TrainRequest(Ticket(model.state_dict(), 0), mask, training, seeds, progress=Watching())
    )
    # The first step makes what the others find; the loss is read at the end of the epoch, with the last.
    assert len(before) == 6
    assert before[1:-1] == [{}] * 4


@pytest.mark.parametrize("backend", [Vmapped, MultiStream])
def test_a_stack_resumes_from_snapshots_of_different_steps_on_the_cpu(backend, images, gpu):
    """Those behind catch up on the GPU and then join the others, which were read from files."""
    model = network("normed").to(CUDA)
    request = TrainRequest(Ticket(model.state_dict(), 0), Mask.ones(model), TRAINING, [(0, Seed(0)), (1, Seed(1))])
    kept: dict[int, Snapshot] = {}

    class Keeping(Progress):
        def on_step(self, index, step, total, snapshot):
            if step == 1 + 2 * index:
                states = {name: getattr(snapshot(), name) for name in ("weights", "optimizer", "mean")}
                on_cpu = {name: {n: value.cpu() for n, value in state.items()} for name, state in states.items()}
                kept[index] = replace(snapshot(), **on_cpu)

    class Resumed(Progress):
        def load_snapshot(self, index):
            return kept[index]

    whole = backend(model, images).train(replace(request, progress=Keeping()))
    for one, other in zip(backend(model, images).train(replace(request, progress=Resumed())), whole, strict=True):
        assert all(torch.equal(one.weights[name].cpu(), weight.cpu()) for name, weight in other.weights.items())


class StopAt(Reporter):
    """Asks the run to stop at that of all its steps."""

    def __init__(self, step: int, stop: Event) -> None:
        self.left, self.stop = step, stop

    def training(self, at):
        self.left -= 1
        if self.left == 0:
            self.stop.set()


def command(*arguments: object) -> None:
    with suppress(SystemExit):
        cli.main([str(one) for one in arguments])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "analyses"),
    [
        ("sequential", ["masks", "barriers", "predictions", "hull", "trajectories", "landscape", "curvature"]),
        ("vmapped", []),
    ],
    ids=["sequential", "vmapped"],
)
def test_a_run_that_was_interrupted_its_analyses_and_its_export(backend, analyses, tmp_path, gpu, capfd):
    """Snapshots go to the disk and come back to the GPU; what looks into a run computes where the run did."""
    training, data = replace(TRAINING, batch_size=45), DataOptions(examples=200)
    config = RunConfig("tiny", "digits", "mlp-bn-8", SHORT, training, data, "cuda", 1, backend, trajectory_every=4)
    stop = Event()
    with pytest.raises(Interrupted):
        start(config, tmp_path / "run", StopAt(22, stop), stop)
    done = resume(tmp_path / "run", Reporter(), Event())
    whole = start(config, tmp_path / "whole", Reporter(), Event())
    on_cpu = start(replace(config, device="cpu", backend="sequential"), tmp_path / "cpu", Reporter(), Event())
    accuracies = [[cycle["test"]["accuracy"] for cycle in run["cycles"]] for run in (done, whole, on_cpu)]
    assert accuracies[0] == accuracies[1] == accuracies[2]
    if analyses:
        limits = "--examples", 20, "--curvature-examples", 10, "--points", 2
        command("analyze", tmp_path / "run", "--only", *analyses, *limits, "--quiet")
        command("export", tmp_path / "run", "--out", tmp_path / "small.safetensors")
        said = capfd.readouterr()
        assert "computed, 0 skipped" in said.out
        assert "outputs differ by" in said.out
        assert "swamp:" not in said.err


@pytest.mark.slow
def test_an_exported_network_on_a_gpu(tmp_path, gpu):
    model, inputs = network("resnet-8").float(), torch.randn(4, 1, 4, 4)
    mask = Mask({name: torch.arange(p.numel()).view(p.shape) % 5 > 0 for name, p in Mask.ones(model).items()})
    mask.apply_(model)
    save(trace(bake_mask(model, mask), inputs[:2]), tmp_path / "small.safetensors")
    for given in (inputs, inputs.to(CUDA)):
        found = swamp.load(tmp_path / "small.safetensors", device="cuda")(given)
        assert found.device == CUDA
        assert torch.allclose(found.cpu(), model.eval()(inputs), atol=1e-6)
