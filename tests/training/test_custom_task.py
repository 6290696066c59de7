"""Task.custom: a loss of a batch and an evaluation of a model, for batches, models and metrics of any form."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import swamp
from swamp.errors import SwampError

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X[:, :3].argmax(1)
HOW = swamp.Training(epochs=4, batch_size=16, lr=0.05)
SHORT: Any = {"sparsity": 0.5, "particles": 2, "cycles": 1, "training": HOW}


@dataclass
class Pair:
    x: Tensor
    y: Tensor
    weight: float = 1.0


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


class SizedStream(Stream):
    def __len__(self) -> int:
        return len(X)


class Graphs:
    """As a batch of torch_geometric: no container that torch knows, with a method `to`."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.num_graphs = x, y, len(x)

    def to(self, device: torch.device) -> "Graphs":
        return Graphs(self.x.to(device), self.y.to(device))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def parts(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, dict):
        return batch["x"], batch["y"]["class"] if isinstance(batch["y"], dict) else batch["y"]
    if isinstance(batch, tuple | list):
        return batch[0], batch[1]
    return batch.x, batch.y


def loss(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = parts(batch)
    return F.cross_entropy(model(inputs), targets)


def evaluate(model: nn.Module) -> dict[str, Any]:
    assert not model.training
    outputs = model(X)
    return {"accuracy": (outputs.argmax(1) == Y).double().mean(), "nll": float(F.cross_entropy(outputs, Y).detach())}


def chunks(make: Callable[[Tensor, Tensor], Any]) -> list[Any]:
    return [make(x, y) for x, y in zip(X.split(16), Y.split(16), strict=True)]


def by_seed(seed: int) -> Iterator[Pair]:
    order = torch.randperm(48, generator=torch.Generator().manual_seed(seed))
    return iter([Pair(X[part], Y[part]) for part in order.split(16)])


SOURCES: dict[str, tuple[Any, int | None]] = {
    "tensors in a tuple": ((X, Y), None),
    "tensors in nested dicts": ({"x": X, "y": {"class": Y}}, None),
    "a TensorDataset": (TensorDataset(X, Y), None),
    "a DataLoader": (DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True), None),
    "a DataLoader with a collate function": (
        DataLoader(
            TensorDataset(X, Y),
            batch_size=16,
            collate_fn=lambda e: {"x": torch.stack([x for x, _ in e]), "y": torch.stack([y for _, y in e])},
        ),
        None,
    ),
    "batches in tuples": (chunks(lambda x, y: (x, y)), None),
    "batches in dicts": (chunks(lambda x, y: {"x": x, "y": y}), None),
    "dataclasses": (chunks(Pair), None),
    "objects of another library": (chunks(Graphs), None),
    "a stream without a length": (Stream(), 3),
    "a stream with a length": (SizedStream(), None),
    "a DataLoader of a stream": (DataLoader(Stream(), batch_size=16), 3),
    "a function of a seed": (by_seed, 3),
}


@pytest.mark.parametrize("source", SOURCES)
def test_batches_of_any_form_are_trained_on(source: str):
    train, steps = SOURCES[source]
    task = swamp.Task.custom(train, loss, evaluate, steps_per_epoch=steps)
    assert task.train.steps(16) == 3
    found = swamp.prune(net(), task, sparsity=0.5, particles=2, cycles=1, training=HOW, backend="sequential")
    metrics = found.cycles[-1].metrics
    assert found.mask.sparsity == 0.5
    assert metrics.test["accuracy"] > 0.5  # chance is a third
    assert metrics.validation is None
    assert metrics.train["loss"] < 1.1
    assert found.cycles[-1].barrier is not None
    assert all(p.grad is None for p in found.model.parameters())


@pytest.mark.filterwarnings("ignore:particles are trained sequentially")
@pytest.mark.parametrize("backend", ["vmapped", "threads"])
@pytest.mark.parametrize("source", ["dataclasses", "objects of another library", "a function of a seed"])
def test_a_backend_that_cannot_take_such_batches_trains_sequentially(source: str, backend: str):
    train, steps = SOURCES[source]
    task = swamp.Task.custom(train, loss, evaluate, steps_per_epoch=steps)
    found, other = (swamp.prune(net(), task, backend=name, **SHORT) for name in (backend, "sequential"))
    for one, reference in zip(found.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, reference, rtol=0, atol=1e-9)


def test_a_custom_task_trains_as_the_task_of_inputs_and_targets():
    # The same examples in the same order through the same loss: the weights are equal bit for bit.
    one = swamp.prune(net(), swamp.Task.of((X, Y), (X, Y)), **SHORT)
    other = swamp.prune(net(), swamp.Task.custom((X, Y), loss, evaluate), **SHORT)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert one.cycles[-1].metrics.test["nll"] == pytest.approx(other.cycles[-1].metrics.test["nll"])


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled_graph")
@pytest.mark.parametrize("backend", ["threads", "vmapped"])
def test_backends_agree_on_a_custom_task(backend: str):
    task = swamp.Task.custom({"x": X, "y": Y}, loss, evaluate)
    options = {"sparsity": 0.5, "particles": 3, "cycles": 1, "training": HOW}
    reference = swamp.prune(net(), task, backend="sequential", **options)
    found = swamp.prune(net(), task, backend=backend, **options)
    assert found.mask == reference.mask
    for one, other in zip(found.model.parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


class Loaded:
    """Data of a class of the user's own, which cannot be split."""

    def __len__(self) -> int:
        return len(X)

    def steps(self, batch_size: int) -> int:
        return len(X) // batch_size

    def shuffled(self, batch_size: int, seed: swamp.Seed, epoch: int, first: int = 0) -> Iterator[Any]:
        batches = chunks(lambda x, y: (x, y))
        order = torch.randperm(len(batches), generator=seed.at(epoch).generator())
        return (batches[int(number)] for number in order[first:])

    def in_order(self, batch_size: int) -> Iterator[Any]:
        return iter(chunks(lambda x, y: (x, y)))

    def to(self, device: torch.device) -> "Loaded":
        return self


@pytest.mark.parametrize(
    "train",
    [(X, Y), chunks(lambda x, y: (x, y)), DataLoader(Stream(), batch_size=16), Loaded()],
    ids=["tensors", "batches", "a stream", "a class"],
)
def test_the_data_of_another_task_are_trained_on(train: Any):
    other = swamp.Task.of(train, (X, Y), steps_per_epoch=3)
    task = swamp.Task.custom(other.train, loss, evaluate)
    assert [next(task.train.in_order(16))[0][0].tolist()] == [next(other.train.in_order(16))[0].tolist()]
    found = swamp.prune(net(), task, sparsity=0.5, particles=2, cycles=1, training=HOW, backend="sequential")
    assert found.cycles[-1].metrics.test["accuracy"] > 0.5


def test_particles_see_the_stream_in_different_orders_and_a_seed_gives_the_same():
    data = swamp.Task.custom(Stream(), loss, evaluate, steps_per_epoch=3).train

    def order(seed: int, epoch: int = 0, first: int = 0) -> list[float]:
        return [float(x) for (x, _), _ in data.shuffled(16, swamp.Seed(seed), epoch, first) for x in x[:, 0]]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(X[:, 0].tolist())
    assert order(0, 2, 1) == order(0, 2)[16:]  # a resumed training
    assert order(0, 1) != order(0, 0)


def test_an_endless_stream_goes_on_in_the_next_epoch():
    class Count(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return (torch.tensor([float(n)]) for n in range(10**9))

    data = swamp.Task.custom(Count(), loss, evaluate, steps_per_epoch=100).train
    seen = [float(x) for epoch in (0, 1) for batch, _ in data.shuffled(4, swamp.Seed(0), epoch) for x in batch]
    assert len(set(seen)) == 800
    assert max(seen) > 799


def test_the_error_is_a_metric_a_function_or_read_off_the_first_metric():
    def error_of(metrics: dict[str, float], **options: Any) -> float:
        task = swamp.Task.custom((X, Y), loss, lambda model: metrics, **options)
        return task.evaluate(net(), "test").error

    assert error_of({"accuracy": 0.75}) == 0.25
    assert error_of({"val_loss": 0.75}) == 0.75
    assert error_of({"score": 0.75}, higher_is_better=False) == 0.75
    assert error_of({"score": 0.5, "mse": 3.0}, error="mse", error_scale=6.0) == 0.5
    assert error_of({"a": 1.0, "b": 0.25}, error=lambda m: m["a"] - m["b"]) == 0.75
    with pytest.raises(SwampError, match="'f1' is not among the metrics a"):
        error_of({"a": 1.0}, error="f1")


def test_methods_that_choose_go_by_validate_and_never_by_evaluate():
    def run(test: Callable[[nn.Module], float]) -> swamp.SparseModel:
        task = swamp.Task.custom((X, Y), loss, lambda model: {"accuracy": test(model)}, validate=evaluate)
        return swamp.prune(net(), task, sparsity=0.5, particles=3, cycles=1, training=HOW, method="imp-best")

    one, other = run(lambda model: 0.5), run(lambda model: float(model[0].weight.detach().mean() > 0))
    assert one.mask == other.mask
    assert one.cycles[-1].metrics.validation != one.cycles[-1].metrics.test
    task = swamp.Task.custom((X, Y), loss, evaluate)
    with pytest.raises(SwampError, match="validation"):
        swamp.prune(net(), task, particles=3, method="imp-best", training=HOW)


def test_an_evaluation_may_differentiate_and_draw_random_numbers(generators):
    def physics(model: nn.Module) -> dict[str, Tensor]:
        points = torch.rand(20, 6, dtype=torch.float64).requires_grad_()
        (slope,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
        return {"residual": slope.square().mean()}

    def residual(model: nn.Module, batch: Any) -> Tensor:
        points = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
        return slope.square().mean()

    task = swamp.Task.custom(X, residual, physics, error="residual", error_scale=1.0)
    model = net()
    before = generators()
    runs = [swamp.prune(model, task, sparsity=0.5, particles=2, cycles=1, training=HOW) for _ in range(2)]
    assert generators() == before
    assert runs[0].cycles[-1].metrics == runs[1].cycles[-1].metrics
    assert runs[0].cycles[-1].metrics.test["residual"] < runs[0].cycles[0].metrics.test["residual"] + 1


def test_what_needs_outputs_says_so_before_training():
    calls = 0

    def counted(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return loss(model, batch)

    task = swamp.Task.custom((X, Y), counted, evaluate)
    with pytest.raises(SwampError, match="an ensemble needs the outputs of the model"):
        list(swamp.algorithms.ensemble(lambda seed: net(), task, swamp.Plan(method="imp-ensemble"), HOW))
    for score in ("grasp", "synflow"):
        with pytest.raises(SwampError, match=f"{score} needs the outputs"):
            swamp.prune(net(), task, score=score, training=HOW)
    with pytest.raises(SwampError, match="predict needs the outputs"):
        swamp.training.predict(net(), task, task.train)
    assert calls == 0


@pytest.mark.parametrize("score", ["snip", "taylor", "fisher"])
def test_scores_of_gradients_take_a_custom_task(score: str):
    custom = swamp.Task.custom((X, Y), loss, evaluate)
    one = swamp.prune(net(), custom, score=score, **SHORT)
    other = swamp.prune(net(), swamp.Task.of((X, Y), (X, Y)), score=score, **SHORT)
    assert one.mask == other.mask


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (0.5, "must return a dict of metrics"),
        ({}, "must return a dict of metrics"),
        ({"accuracy": torch.zeros(2)}, "names and numbers; it returned Tensor for 'accuracy'"),
        ({1: 0.5}, "names and numbers"),
    ],
)
def test_an_evaluation_returns_names_and_numbers(found: Any, message: str):
    with pytest.raises(SwampError, match=message):
        swamp.prune(net(), swamp.Task.custom((X, Y), loss, lambda model: found), training=HOW)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Stream(), "has no length: give steps_per_epoch"),
        (by_seed, "has no length: give steps_per_epoch"),
        (3, "cannot take batches from a int"),
        ([], "0 batches"),
        ({"x": X, "y": Y[:5]}, "need the same length"),
    ],
)
def test_sources_that_cannot_be_read_are_refused(train: Any, message: str):
    with pytest.raises(SwampError, match=message):
        swamp.Task.custom(train, loss, evaluate)


@pytest.mark.usefixtures("uncompiled_graph")
def test_a_loss_of_another_library_is_read_from_its_output():
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Any:
            logits = self.body(inputs)
            return SimpleNamespace(logits=logits, loss=None if labels is None else F.cross_entropy(logits, labels))

    def own(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch).loss

    def accuracy(model: nn.Module) -> dict[str, Tensor]:
        return {"accuracy": (model(X).logits.argmax(1) == Y).double().mean()}

    task = swamp.Task.custom({"inputs": X, "labels": Y}, own, accuracy)
    for backend in ("sequential", "vmapped"):
        found = swamp.prune(Labelled(), task, sparsity=0.5, particles=2, cycles=1, training=HOW, backend=backend)
        assert found.cycles[-1].metrics.test["accuracy"] > 0.5


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("backend", ["sequential", "vmapped"])
def test_the_stream_of_a_particle_ends_with_its_training(backend):
    alive: list[int] = []

    class Counted(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            alive.append(1)
            try:
                while True:
                    yield torch.rand(6), 1
            finally:
                alive.pop()

    task = swamp.Task.of(train=Counted(), test=(torch.ones(8, 6), torch.ones(8).long()), steps_per_epoch=4)
    counts: list[int] = []
    swamp.prune(
        nn.Linear(6, 3),
        task,
        sparsity=0.5,
        cycles=2,
        particles=2,
        backend=backend,
        training=swamp.Training(epochs=2, batch_size=8),
        on_cycle=lambda cycle: counts.append(len(alive)),
    )
    assert counts == [counts[0]] * 3
    assert counts[0] <= 1  # of the ticket, whose training stops early
