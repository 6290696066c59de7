"""The dry run: what does not fit is refused before the first training step, by a message with the shapes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import swamp
from swamp.errors import SwampError
from swamp.training import predict
from swamp.training.data import BatchList, sampled
from swamp.training.dry_run import dry_run

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
HOT = F.one_hot(Y, 3).float()
HOW = swamp.Training(epochs=2, batch_size=16, lr=0.05)
SHORT: Any = {"sparsity": 0.5, "particles": 2, "cycles": 1, "training": HOW, "barrier_threshold": 1.0}


class Counting(nn.Module):
    """Counts its forward passes in train mode."""

    def __init__(self, out: int = 3, change: Callable[[Tensor], Any] = lambda outputs: outputs) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(6, out), change
        self.passes: list[int] = []

    def forward(self, *inputs: Tensor) -> Any:
        if self.training:
            self.passes.append(len(inputs[0]))
        return self.change(self.layer(sum(inputs, torch.zeros(()))))


def refused(model: nn.Module, task: swamp.Task, message: str, **options: Any) -> None:
    calls = 0

    class NoTraining:
        def train(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            raise AssertionError("something was trained")

    with pytest.raises(SwampError, match=message):
        swamp.prune(model, task, sparsity=0.5, cycles=1, training=HOW, backend=NoTraining(), **options)
    assert calls == 0


def short(model: nn.Module, task: swamp.Task, **options: Any) -> swamp.SparseModel:
    return swamp.prune(
        model,
        task,
        **{**SHORT, **options},
    )


def failing(outputs: Tensor, targets: Tensor) -> float:
    raise ZeroDivisionError("a fault of the user")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metrics": {"accuracy": failing}}, r"the metric 'accuracy' failed on outputs float32 \(2, 3\) and targets"),
        ({"metrics": {"accuracy": lambda o, t: "high"}}, "the metric 'accuracy' must be one number; it is 'high'"),
        ({"metrics": {"f1": lambda o, t: 0.0}}, "the metrics f1, and no error"),
        ({"metrics": {}}, "the metrics none, and no error"),
        ({"error": failing}, "the error failed on outputs"),
        ({"error": lambda o, t: 40.0}, r"error of the untrained model is 40, and an error lies in \[0, 1\]"),
        ({"loss": failing}, r"the loss failed on two examples of the training data: inputs \(float32 \(2, 6\)\)"),
        ({"loss": lambda o, t: F.cross_entropy(o, t, reduction="none")}, r"scalar tensor, and it is float32 \(2,\)"),
        ({"loss": lambda o, t: 1.0}, "a scalar tensor, and it is a float"),
        ({"loss": lambda o, t: F.cross_entropy(o, t).detach()}, "does not depend on any weight"),
        ({"forward": lambda model, inputs: model(inputs[:, 1:])}, "the model failed on two examples of the train data"),
    ],
)
def test_functions_of_the_task_are_called_before_training(fields: dict[str, Any], message: str):
    refused(Counting(), swamp.Task.of((X, Y), (X, Y), **fields), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: (o, o), r"returned a tuple for .* \(0 float32 \(2, 3\), 1 float32 \(2, 3\)\), and a tensor"),
        (lambda o: {"scores": o}, r"returned a dict for .*\(scores float32 \(2, 3\)\)"),
        (lambda o: o.T, r"returned float32 \(3, 2\) for .* the first dimension must be the examples"),
    ],
)
def test_outputs_that_are_no_tensor_of_examples_are_named(change: Callable[[Tensor], Any], message: str):
    refused(Counting(change=change), swamp.Task.of((X, Y), (X, Y)), message)


def test_each_split_is_tried():
    wider = torch.zeros(4, 7), torch.zeros(4, dtype=torch.long)
    refused(Counting(), swamp.Task.of((X, Y), wider), r"failed on two examples of the test data \(float32 \(2, 7\)\)")
    refused(Counting(), swamp.Task.of((X, Y), (X, Y), wider), "two examples of the validation data")


def test_a_combination_of_outputs_is_tried_for_an_ensemble():
    task = swamp.Task.of((X, Y), (X, Y), combine=lambda outputs: outputs[5])
    with pytest.raises(SwampError, match="combine failed on outputs"):
        list(swamp.algorithms.ensemble(lambda seed: Counting(), task, swamp.Plan(method="imp-ensemble"), HOW))
    assert short(Counting(), task).sparsity == 0.5  # which no average needs


def test_a_loss_that_reaches_no_prunable_weight_is_refused():
    class Detached(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(*inputs).detach() * self.scale

    refused(Detached(), swamp.Task.of((X, Y), (X, Y)), "depends on none of the prunable weights layer.weight")


def test_a_state_dict_that_cannot_be_loaded_is_refused():
    class Renamed(Counting):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {f"other.{name}": value for name, value in super().state_dict(*args, **kwargs).items()}

    refused(Renamed(), swamp.Task.of((X, Y), (X, Y)), "does not fit its own load_state_dict")


def test_a_state_dict_without_a_trained_parameter_is_refused():
    class Partial(Counting):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "bias" not in name}

        def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
            return super().load_state_dict(state_dict, strict=False, assign=assign)

    refused(Partial(), swamp.Task.of((X, Y), (X, Y)), r"state_dict\(\) has no layer.bias")


def test_batches_of_the_user_are_tried_whole():
    class GraphLayer(Counting):
        def forward(self, *inputs: Tensor) -> Tensor:
            nodes, adjacency = inputs
            return self.change(self.layer(adjacency @ nodes))

    graph = [((X, torch.eye(len(X))), Y)]
    task, how = swamp.Task.of(graph, graph), swamp.Training(epochs=4)
    assert swamp.prune(GraphLayer(), task, sparsity=0.5, method="imp", cycles=1, training=how).sparsity == 0.5


def test_a_batch_size_of_a_dataloader_that_is_not_used_is_named():
    train = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
    with pytest.warns(UserWarning, match=r"has batch_size=8, which is not used: .*Training.batch_size=16"):
        short(Counting(), swamp.Task.of(train, (X, Y)))
    short(Counting(), swamp.Task.of(DataLoader(TensorDataset(X, Y), batch_size=16), train))


def test_parameters_of_the_loss_that_stay_untrained_are_named():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs * self.scale, targets)

    with pytest.warns(UserWarning, match="the loss Scaled has parameters that require a gradient"):
        short(Counting(), swamp.Task.of((X, Y), (X, Y), loss=Scaled()))
    short(Counting(), swamp.Task.of((X, Y), (X, Y), loss=Scaled().requires_grad_(False)))


def test_a_regression_with_targets_of_another_shape_is_refused():
    refused(Counting(1), swamp.Task.of((X, X[:, 0]), (X, X[:, 0]), loss=F.mse_loss), r"outputs \(2, 1\), got \(2,\)")


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_a_batch_of_one_example_before_batchnorm_is_refused():
    batches = list(DataLoader(TensorDataset(X[:33], Y[:33]), batch_size=16))
    refused(normed(), swamp.Task.of(batches, (X, Y)), "the smallest training batch, of 1.*Expected more than 1 value")
    how = swamp.Training(epochs=1, batch_size=16, grad_accum_steps=16)
    with pytest.raises(SwampError, match=r"a part of 1 for grad_accum_steps=16.*Expected more than 1 value"):
        short(normed(), swamp.Task.of((X, Y), (X, Y)), training=how)
    assert short(Counting(), swamp.Task.of(batches, (X, Y))).sparsity == 0.5


def test_outputs_of_unequal_length_are_refused_before_training():
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 16)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.embed(tokens)).transpose(1, 2)

    batches = [(torch.randint(9, (8, n)), torch.randint(5, (8, n))) for n in (5, 7, 9)]
    refused(Tagger(), swamp.Task.of(batches, batches), "two batches have the shapes")


def test_accumulation_needs_a_mean_over_examples():
    how = swamp.Training(epochs=2, batch_size=16, grad_accum_steps=4)
    task = swamp.Task.of((X, HOT), (X, HOT), loss=lambda o, t: ((o - t) ** 2).sum())
    with pytest.raises(SwampError, match="needs a loss that is the mean over the examples"):
        short(Counting(), task, training=how)
    mean = swamp.Task.of((X, HOT), (X, HOT), loss=lambda o, t: ((o - t) ** 2).mean())
    assert short(Counting(), mean, training=how).sparsity == 0.5


DEFAULTS: list[tuple[Any, Tensor, int, set[str]]] = [
    (F.cross_entropy, Y, 3, {"accuracy", "nll", "ece"}),
    (F.cross_entropy, HOT, 3, {"accuracy", "nll", "ece"}),
    (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3])), Y, 3, {"accuracy", "nll", "ece"}),
    (F.binary_cross_entropy_with_logits, HOT, 3, {"accuracy", "nll"}),
    (nn.BCEWithLogitsLoss(), HOT[:, :1], 1, {"accuracy", "nll"}),
    (F.mse_loss, X[:, :1], 1, {"rmse", "unexplained_variance"}),
    (nn.SmoothL1Loss(), X[:, :2], 2, {"rmse", "unexplained_variance"}),
]


@pytest.mark.parametrize(("loss", "targets", "out", "names"), DEFAULTS)
def test_the_default_metrics_fit_the_loss(loss: Any, targets: Tensor, out: int, names: set[str]):
    found = short(Counting(out), swamp.Task.of((X, targets), (X, targets), loss=loss)).cycles[-1]
    assert set(found.metrics.test) == names
    assert found.barrier is not None


def test_one_output_for_classes_is_refused():
    refused(Counting(1), swamp.Task.of((X, Y), (X, Y), loss=lambda o, t: o.mean()), "one output per class")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(("wrong", "span"), [(3, "0 to 3"), (-1, "-1 to 2")])
def test_class_numbers_beside_the_outputs_are_refused_wherever_they_are(split: str, wrong: int, span: str):
    data: dict[str, Any] = dict.fromkeys(("train", "validation", "test"), (X, Y))
    task = swamp.Task.of(**data | {split: (X, torch.where(torch.arange(48) == 40, wrong, Y))})
    refused(Counting(), task, f"3 outputs, for the classes 0 to 2, and the class numbers of the {split} .* from {span}")
    listed = list(DataLoader(TensorDataset(X, torch.where(torch.arange(48) == 40, wrong, Y)), 12))
    refused(Counting(), swamp.Task.of(**data | {split: listed}), f"the class numbers of the {split} .* from {span}")


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_class_numbers_of_another_type_are_refused(dtype: torch.dtype):
    refused(Counting(), swamp.Task.of((X, Y.to(dtype)), (X, Y)), r"class numbers are int64, .* Give targets.long\(\)")


def test_batches_of_one_example_before_batchnorm_are_refused():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(SwampError, match="the loss failed on an example of the training data"):
        swamp.prune(model, swamp.Task.of((X, Y), (X, Y)), sparsity=0.5, training=swamp.Training(epochs=1, batch_size=1))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(ignore_index=7), partial(F.cross_entropy, ignore_index=7)])
def test_metrics_leave_out_what_the_loss_ignores(loss: Any):
    outputs = torch.tensor([[5.0, 0], [0, 5], [5, 0], [0, 5]])
    targets = torch.tensor([0, 1, 1, 7])
    task = swamp.Task.of((outputs, targets), (outputs, targets), loss=loss)
    plain = swamp.Task.of((outputs[:3], targets[:3]), (outputs[:3], targets[:3]))
    for name, metric in task.metrics.items():
        assert metric(outputs, targets) == plain.metrics[name](outputs[:3], targets[:3])
    one_hot = F.one_hot(targets.clamp(max=1), 2).float()
    assert task.metrics["accuracy"](outputs, one_hot) == 0.75


def test_segmentation_is_measured_by_pixel_without_ignored_ones():
    outputs = torch.tensor([[[5.0, 0, 5, 0], [0, 5, 0, 5]]])  # (1 example, 2 classes, 4 pixels): classes 0 1 0 1
    targets = torch.tensor([[0, 1, 1, -100]])
    task = swamp.Task.of((outputs, targets), (outputs, targets))
    assert task.metrics["accuracy"](outputs, targets) == pytest.approx(2 / 3)
    assert task.error_of(outputs, targets) == pytest.approx(1 / 3)
    assert task.metrics["ece"](outputs, targets) == pytest.approx(1 / 3, abs=0.01)


def test_several_inputs_are_passed_in_order():
    train = (X, X, Y)
    assert short(Counting(), swamp.Task.of(train, train)).sparsity == 0.5
    assert short(Counting(), swamp.Task.of(TensorDataset(*train), train)).sparsity == 0.5
    assert (
        short(
            Counting(), swamp.Task.of([(x, x, y) for x, y in zip(X.split(16), Y.split(16), strict=True)], train)
        ).sparsity
        == 0.5
    )


@pytest.mark.parametrize("sized", [True, False])
def test_a_stream_of_examples_is_trained_on(sized: bool):
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    if sized:
        Stream.__len__ = lambda self: len(X)  # pyright: ignore[reportAttributeAccessIssue]
    task = swamp.Task.of(Stream(), (X, Y), steps_per_epoch=None if sized else 3)
    assert short(Counting(), task).sparsity == 0.5
    if not sized:
        with pytest.raises(SwampError, match="give steps_per_epoch"):
            swamp.Task.of(Stream(), (X, Y))


def test_some_examples_of_class_sorted_data_show_every_class():
    # The first 90 of 600 sorted examples would show one class.
    data = swamp.TensorData(torch.zeros(600, 1), torch.arange(600) // 200)
    some = sampled(data, 90)
    assert len(some) == 90
    assert min(some.targets.bincount(minlength=3).tolist()) > 20
    assert torch.equal(some.targets, sampled(data, 90).targets)
    _, targets = predict(nn.Linear(1, 3), swamp.Task(data, data), data, examples=90)
    assert torch.equal(targets, some.targets)
    batches = [(x, y) for x, y in zip(data.inputs.split(10), data.targets.split(10), strict=True)]
    assert len(set(torch.cat([y for _, y in sampled(BatchList(batches), 90).in_order(10)]).tolist())) == 3


def test_the_dry_run_leaves_the_model_and_the_generators_as_they_were(generators):
    model = normed()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, generators()
    dry_run(model, swamp.Task.of((X, Y), (X, Y)), HOW, prunable={"0.weight"})
    assert generators() == state
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
