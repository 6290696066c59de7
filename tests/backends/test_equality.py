"""Threads and stacks give the weights of particles trained one after the other, whatever the network and options."""

import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.backends import Backend, Progress, Sequential, Threads, Ticket, TrainRequest, Vmapped
from swamp.backends.vmapped import MultiStream
from swamp.errors import Interrupted
from swamp.masks import Mask
from swamp.training import Seed, Task, TensorData, Training, crop_flip
from swamp.training.average import copied
from swamp.training.optimizers import torch_optimizers
from swamp.training.rng import isolated
from swamp.training.snapshot import Snapshot

SEEDS = [(index, Seed(0).at("particle", index)) for index in range(3)]
TEN_STEPS = Training(epochs=4, batch_size=6, swa_fraction=0.5, lr=0.05)


class Tied(nn.Module):
    """One matrix in two places, a frozen layer, and a buffer that is not in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(16, 16)
        self.two = nn.Linear(16, 16)
        self.two.weight = self.one.weight
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.out = nn.Linear(16, 3)
        self.register_buffer("scale", torch.tensor(0.7), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.one(inputs.flatten(1)))
        return self.out(torch.tanh(self.two(hidden) + self.frozen(hidden)) * self.scale)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.layer(inputs.squeeze(1)).mean(1))


class Counting(nn.Module):
    """Keeps a mean of what it saw in a buffer that it replaces, and a count that it writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = nn.Linear(16, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.tensor(1.3))
        self.register_buffer("seen", torch.zeros(8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.one(inputs.flatten(1)))
        if self.training:
            self.seen = 0.9 * self.seen + 0.1 * hidden.detach().mean(0)
            self.steps += 1
        return self.out(self.gain * hidden - self.seen)


class Unused(nn.Module):
    """A layer that is never called, a weight that the loss does not see, and statistics of instances."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.never, self.out = nn.Linear(16, 8), nn.Linear(4, 4), nn.Linear(8, 3)
        self.norm = nn.InstanceNorm1d(2, track_running_stats=True)
        self.ignored = nn.Parameter(torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.one(inputs.flatten(1))).unflatten(1, (2, 4))).flatten(1)
        return self.out(hidden) + self.ignored.detach()


class Alternating(nn.Module):
    """Uses one of two layers, by turns, or as the batch says."""

    def __init__(self, *, turns: bool) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 3)
        self.calls, self.turns = 0, turns

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        first = self.calls % 2 == 0 if self.turns else bool(inputs.sum() > 0)
        return self.out(torch.tanh((self.one if first else self.two)(inputs.flatten(1))))


def convolutional() -> nn.Module:
    body = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2)]
    return nn.Sequential(*body, nn.Conv2d(4, 4, 3, groups=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3))


def normed() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(),
            one=nn.Linear(16, 8, bias=False),
            norm=nn.BatchNorm1d(8),
            relu=nn.ReLU(),
            drop=nn.Dropout(0.3),
            out=nn.Linear(8, 3),
        )
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "normed": normed,
    "convolutional": convolutional,
    "tied": Tied,
    "counting": Counting,
    "attending": Attending,
    "unused": Unused,
}


def task_of(**options: Any) -> Task:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(18, 1, 4, 4, generator=generator, dtype=torch.float64)
    data = TensorData(inputs, torch.randint(0, 3, (18,), generator=generator), **options)
    return Task(data, data)


def network_of(name: str) -> nn.Module:
    with isolated(Seed(0).at("init")):
        model = NETWORKS[name]().double()
    # Statistics as of a ticket that has trained: fresh ones must differ.
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.fill_(0.3)
    return model


def assert_equal_to_sequential(
    build: Callable[..., Backend], model: nn.Module, task: Task, training: Training, optimizer: Any = None
) -> None:
    mask = Mask({name: torch.arange(p.numel()).view(p.shape) % 3 != 0 for name, p in Mask.ones(model).items()})
    ticket = Ticket(model.state_dict(), 0)
    expected = Sequential(model, task, optimizer).train(TrainRequest(ticket, mask, training, SEEDS))
    found = build(model, task, optimizer).train(TrainRequest(ticket, mask, training, SEEDS))
    for one, other in zip(found, expected, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-9)
        assert (one.averaged, one.steps, one.index) == (other.averaged, other.steps, other.index)
        for name, weight in other.weights.items():
            # Rprop and its like jump by the sign of a gradient: rounding makes no difference that is small.
            assert torch.allclose(one.weights[name].double(), weight.double(), rtol=0, atol=1e-10), name


def uncompiled(model: nn.Module, task: Task, optimizer: Any = None) -> Backend:
    return Vmapped(model, task, optimizer, compiled=False)


@pytest.fixture(params=[Threads, uncompiled, MultiStream], ids=["threads", "vmapped", "multi-stream"])
def build(request: pytest.FixtureRequest) -> Callable[..., Backend]:
    return request.param


COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on CPU")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sam": {"sam": 0.1},
    "asam": {"sam": 0.5, "sharpness": "asam"},
    "s2-sam and clip": {"sam": 0.1, "sharpness": "s2-sam", "clip": 0.05},
    "clip": {"clip": 0.05},
    "a clip that is never reached": {"clip": 1e6},
    "sam and clip": {"sam": 0.1, "clip": 0.05},
    "nesterov": {"nesterov": True},
    "no momentum, no decay": {"momentum": 0.0, "weight_decay": 0.0},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "label smoothing": {"label_smoothing": 0.1},
    "last iterates": {"swa": False},
    "moving average": {"swa": False, "ema": 0.4},
    "latest weights": {"swa": False, "lawa": 2},
    "fresh statistics": {"reset_batchnorm": True},
    "repeats and a cyclic tail": {
        "epochs": 6,
        "swa_fraction": 1 / 3,
        "schedule_repeats": 2,
        "swa_cycles": 1,
        "warmup": 1.0,
    },
}


@pytest.mark.pairwise
@pytest.mark.fast_cases(12)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_network_with_every_option(name, network, build):
    assert_equal_to_sequential(build, network_of(network), task_of(), replace(TEN_STEPS, **OPTIONS[name]))


@pytest.mark.fast_cases(9)
@pytest.mark.parametrize("name", sorted(set(torch_optimizers()) - {"Muon"}))
def test_every_optimizer_of_torch(name, build):
    training = replace(TEN_STEPS, optimizer=name, lr=1e-3, weight_decay=0.0)
    if name == "Rprop":  # takes no weight decay
        return assert_equal_to_sequential(build, network_of("normed"), task_of(), TEN_STEPS, torch.optim.Rprop)
    assert_equal_to_sequential(build, network_of("normed"), task_of(), training)


@pytest.mark.parametrize("turns", [True, False], ids=["by turns", "by batch"])
def test_weights_with_a_gradient_on_some_batches_only(turns, build):
    with isolated(Seed(0).at("init")):
        model = Alternating(turns=turns).double()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "particles are trained sequentially")
        assert_equal_to_sequential(build, model, task_of(), TEN_STEPS)


def test_a_factory_sees_the_weights_of_one_model(build):
    def without_decay_on_vectors(parameters: Any) -> torch.optim.Optimizer:
        kept = list(parameters)
        groups = [
            {"params": [p for p in kept if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in kept if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    assert_equal_to_sequential(build, network_of("normed"), task_of(), TEN_STEPS, without_decay_on_vectors)


@pytest.mark.parametrize(
    "augment", [crop_flip(1), crop_flip(2, flip=False), lambda x, g: x + torch.randn(x.shape, generator=g)]
)
def test_augmentation(augment, build):
    task = task_of(augment=augment, normalise=lambda x: 2 * x)
    assert_equal_to_sequential(build, network_of("convolutional"), task, TEN_STEPS)


def test_inputs_by_name_and_a_forward_pass_of_the_task(build):
    generator = torch.Generator().manual_seed(3)
    inputs = {"x": torch.randn(18, 1, 4, 4, generator=generator).double(), "shift": torch.rand(18, generator=generator)}
    data = TensorData(inputs, torch.randint(0, 3, (18,), generator=generator))
    task = Task(data, data, forward=lambda model, batch: model(batch["x"]) + batch["shift"][:, None])
    assert_equal_to_sequential(build, network_of("normed"), task, TEN_STEPS)


def test_a_list_of_batches_and_another_loss(build):
    generator = torch.Generator().manual_seed(3)
    batches = [
        (torch.randn(6, 16, generator=generator).double(), torch.randn(6, 3, generator=generator).double())
        for _ in range(3)
    ]
    task = Task.of(batches, batches, loss=F.mse_loss, metrics={}, error=lambda outputs, targets: 0.0)
    assert_equal_to_sequential(build, network_of("tied"), task, TEN_STEPS)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled_graph")
@pytest.mark.parametrize("name", ["nesterov", "sam and clip", "asam"])
def test_the_traced_step(name):
    training = replace(TEN_STEPS, **OPTIONS[name])
    assert_equal_to_sequential(Vmapped, network_of("normed"), task_of(), training)


class Anchored(Progress):
    """Particles that a penalty draws to anchors: 0.1 for the first, 0.2 for the second ..."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.taken = model, {}

    def load_snapshot(self, index):
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad and p.dim() > 1}
        anchor = {name: torch.full_like(p, 0.1 * (index + 1)).detach() for name, p in trained.items()}
        return Snapshot(0, copied(self.model.state_dict()), {}, {}, 0, (), 0.0, 0, anchor=anchor)

    def on_step(self, index, step, total, snapshot):
        if step == 5:
            self.taken[index] = snapshot()


def assert_anchored(build: Callable[..., Backend], name: str) -> None:
    model, task = network_of(name), task_of()
    training = replace(TEN_STEPS, sam=0.1, clip=1.0, penalty=0.5)

    def trained(backend: Backend, progress: Progress) -> list[Any]:
        return backend.train(
            TrainRequest(Ticket(model.state_dict(), 0), Mask.ones(model), training, SEEDS, progress=progress)
        )

    class Resuming(Progress):
        def load_snapshot(self, index):
            return first.taken[index]

    first = Anchored(model)
    expected, found = trained(Sequential(model, task), Anchored(model)), trained(build(model, task), first)
    resumed = trained(build(model, task), Resuming())
    free = Sequential(model, task).train(TrainRequest(Ticket(model.state_dict(), 0), Mask.ones(model), training, SEEDS))
    for one, other, again, without in zip(found, expected, resumed, free, strict=True):
        assert any((without.weights[n] - weight).abs().max() > 1e-3 for n, weight in other.weights.items())
        for n, weight in other.weights.items():
            assert torch.allclose(one.weights[n].double(), weight.double(), rtol=0, atol=1e-10), n
            assert torch.equal(again.weights[n], one.weights[n]), n


@pytest.mark.parametrize("name", ["normed", "tied", "unused"])
def test_a_penalty_draws_each_particle_to_its_anchor_also_after_an_interruption(name, build):
    assert_anchored(build, name)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled_graph")
def test_a_traced_step_has_the_penalty():
    assert_anchored(Vmapped, "normed")


@pytest.mark.usefixtures("uncompiled_graph")
@pytest.mark.parametrize("name", ["adamw", "s2-sam and clip", "moving average"])
def test_a_traced_step_resumes_where_an_interrupted_one_stopped(name):
    model, task, training = network_of("counting"), task_of(), replace(TEN_STEPS, **OPTIONS[name])
    ticket, mask, kept = Ticket(model.state_dict(), 0), Mask.ones(model), {}

    class StopAtFive(Progress):
        def on_step(self, index, step, total, snapshot):
            if step == 5:
                kept[index] = snapshot()
                raise Interrupted("enough")

        def load_snapshot(self, index):
            return kept.get(index)

    backend = Vmapped(model, task)
    with pytest.raises(Interrupted):
        backend.train(TrainRequest(ticket, mask, training, SEEDS, progress=StopAtFive()))
    assert sorted(kept) == [0, 1, 2]
    found = backend.train(TrainRequest(ticket, mask, training, SEEDS, progress=StopAtFive()))
    expected = Sequential(model, task).train(TrainRequest(ticket, mask, training, SEEDS))
    for one, other in zip(found, expected, strict=True):
        assert all(
            torch.allclose(one.weights[n].double(), w.double(), rtol=0, atol=1e-10) for n, w in other.weights.items()
        )


@pytest.mark.slow  # the compiler takes ten seconds where its cache is empty
@pytest.mark.parametrize(
    ("network", "name"), [("normed", "sam and clip"), ("counting", "adamw")], ids=["normed", "counting"]
)
@COMPILER
def test_one_compiled_step_serves_every_cycle_and_other_masks(network, name, monkeypatch):
    weighted = partial(F.cross_entropy, weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    task = replace(task_of(augment=crop_flip(1), normalise=lambda x: 2 * x), loss=weighted)
    model, training = network_of(network), replace(TEN_STEPS, **OPTIONS[name])
    backend, ticket = Vmapped(model, task), Ticket(model.state_dict(), 0)
    for every in (2, 3):
        mask = Mask({n: torch.arange(p.numel()).view(p.shape) % every != 0 for n, p in Mask.ones(model).items()})
        if every == 3:
            monkeypatch.setattr(torch._inductor, "compile", None)
        found = backend.train(TrainRequest(ticket, mask, training, SEEDS))
        expected = Sequential(model, task).train(TrainRequest(ticket, mask, training, SEEDS))
        for one, other in zip(found, expected, strict=True):
            assert one.losses == pytest.approx(other.losses, rel=1e-9)
            for n, weight in other.weights.items():
                assert torch.allclose(one.weights[n].double(), weight.double(), rtol=0, atol=1e-10), n


def wide_stack():
    """Large enough that a stack of two rounds otherwise than one of three."""
    generator = torch.Generator().manual_seed(3)
    data = TensorData(torch.randn(192, 64, generator=generator), torch.randint(0, 10, (192,), generator=generator))
    with isolated(Seed(0).at("init")):
        model = nn.Sequential(nn.Linear(64, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 10))
    task, training = Task(data, data), replace(TEN_STEPS, batch_size=48)
    return Vmapped(model, task, compiled=False), (Ticket(model.state_dict(), 0), Mask.ones(model), training)


def test_a_stack_resumes_from_different_steps_to_the_same_bits():
    (backend, given), kept = wide_stack(), {}

    class Keeps(Progress):
        def on_step(self, index, step, total, snapshot):
            # What is on disk when a process dies between the snapshots of two particles.
            if step == (3 if index == 1 else 5):
                kept[index] = snapshot()

    class GoesOn(Progress):
        def load_snapshot(self, index):
            return kept.get(index)

    whole = backend.train(TrainRequest(*given, SEEDS, progress=Keeps()))
    found = backend.train(TrainRequest(*given, SEEDS, progress=GoesOn()))
    for one, other in zip(found, whole, strict=True):
        assert all(torch.equal(one.weights[name], value) for name, value in other.weights.items())


@pytest.mark.parametrize("saved", range(4))
@pytest.mark.parametrize("written", range(3))
def test_a_process_killed_while_a_stack_is_finalised_resumes_to_the_same_bits(saved, written):
    """It had saved so many of three at the last step, and written so many."""
    (backend, given), kept, done = wide_stack(), {}, []

    class Dies(Progress):
        def on_step(self, index, step, total, snapshot):
            if step == 5:
                kept[index] = snapshot()

        def on_last_step(self, index, snapshot):
            if index == saved:
                raise Interrupted("killed")
            kept[index] = snapshot()

        def on_finished(self, particle):
            if len(done) == written:
                raise Interrupted("killed")
            done.append(particle)

    class GoesOn(Progress):
        def load_snapshot(self, index):
            return kept.get(index)

    whole = backend.train(TrainRequest(*given, SEEDS))
    with pytest.raises(Interrupted):
        backend.train(TrainRequest(*given, SEEDS, progress=Dies()))
    found = [*done, *backend.train(TrainRequest(*given, SEEDS[len(done) :], progress=GoesOn()))]
    for one, other in zip(found, whole, strict=True):
        assert all(torch.equal(one.weights[name], value) for name, value in other.weights.items())
        assert (one.averaged, one.losses) == (other.averaged, other.losses)
