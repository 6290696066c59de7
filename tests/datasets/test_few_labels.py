"""Semi-supervised and self-supervised tasks: hidden labels, losses, the teacher, refusals."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from swamp.cli import main
from swamp.datasets import build_problem
from swamp.datasets.bundled import digits
from swamp.datasets.problem import DataOptions, LabelOptions, Problem
from swamp.datasets.unlabelled import few_labels as semi
from swamp.datasets.unlabelled.contrastive import features, nt_xent, self_supervised, simclr_loss
from swamp.datasets.unlabelled.views import ViewData
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.models import build_network
from swamp.training.augment import contrast_cutout, crop_flip
from swamp.training.data import TensorData
from swamp.training.loop import fit
from swamp.training.options import Training
from swamp.training.rng import Seed, isolated

ALL = DataOptions(examples=90, validation=0.0)


def given(objective: str = "", labelled: int = 40) -> DataOptions:
    return DataOptions(examples=90, validation=0.25, labels=LabelOptions(labelled, objective))


def with_targets(problem: Problem, targets: torch.Tensor) -> Problem:
    task = problem.task
    return replace(problem, task=replace(task, train=replace(task.train, targets=targets)))


def trained(problem: Problem) -> dict[str, torch.Tensor]:
    with isolated(Seed(3)):
        model = build_network("mlp-8", problem.shape, problem.classes)
    model = problem.adapt(model) if problem.adapt else model
    return dict(fit(model, problem.task, Training(epochs=2, batch_size=30, lr=0.1), Seed(1)).weights)


def labelled_places() -> torch.Tensor:
    """Examples whose labels the task has: each label is its own place in the data."""
    task = semi.semi_supervised(with_targets(digits(ALL, Seed(0)), torch.arange(90)), given(), Seed(0), "test").task
    assert isinstance(task.train, ViewData)
    assert task.train.labelled is not None
    return torch.cat([task.train.labelled.targets, task.validation.targets])


def test_the_task_has_the_labels_that_were_asked_for_and_no_others():
    places = labelled_places()
    assert len(places.unique()) == len(places) == 40
    task = semi.semi_supervised(digits(ALL, Seed(0)), given(), Seed(0), "test").task
    assert (len(task.train.labelled), len(task.validation), len(task.train)) == (30, 10, 80)
    assert {name for name, value in vars(task.train).items() if isinstance(value, torch.Tensor)} == {"images"}


@pytest.mark.parametrize("objective", semi.OBJECTIVES)
def test_other_hidden_labels_give_the_same_bits(objective):
    base = digits(ALL, Seed(0))
    targets = base.task.train.targets
    poisoned = (targets + 1 + torch.arange(90) % 9) % 10
    places = labelled_places()
    poisoned[places] = targets[places]
    assert int((poisoned != targets).sum()) == 50
    one, other = (
        semi.semi_supervised(with_targets(base, labels), given(objective), Seed(0), "test")
        for labels in (targets, poisoned)
    )
    weights, again = trained(one), trained(other)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert torch.equal(one.task.validation.targets, other.task.validation.targets)
    # One of the labels that training reads does change them.
    poisoned[places[0]] = (poisoned[places[0]] + 1) % 10
    changed = trained(semi.semi_supervised(with_targets(base, poisoned), given(objective), Seed(0), "test"))
    assert any(not torch.equal(weights[name], changed[name]) for name in weights)


def views(labelled: bool = True) -> ViewData:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 8, 8).contiguous()
    few = TensorData(images[:3], torch.arange(3), crop_flip(1)) if labelled else None
    return ViewData(images, (crop_flip(1), contrast_cutout()), None, few)


@pytest.mark.parametrize("labelled", [True, False])
def test_views_continue_within_an_epoch_with_the_same_batches(labelled):
    data = views(labelled)
    whole, rest = list(data.shuffled(3, Seed(1), 2)), list(data.shuffled(3, Seed(1), 2, first=1))
    assert (len(whole), len(rest), data.steps(3)) == (3, 2, 3)
    for (inputs, targets), (again, labels) in zip(whole[1:], rest, strict=True):
        assert torch.equal(targets, labels)
        assert all(torch.equal(one, other) for one, other in zip(inputs, again, strict=True))


def test_labelled_examples_are_shown_equally_often_and_match_their_labels():
    batches = list(views().shuffled(3, Seed(0), 0))
    assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [3, 3, 3]
    for (_, _, inputs), labels in batches:
        assert torch.equal(inputs[:, 0, 4, 4].long(), labels)


def test_in_order_all_images_come_once_in_the_same_views():
    batches = [list(views().in_order(4)) for _ in range(2)]
    assert [len(labels) for _, labels in batches[0]] == [4, 4, 2]
    firsts, again = (torch.cat([inputs[0] for inputs, _ in part]) for part in batches)
    assert torch.equal(firsts, again)
    assert firsts[:, 0, 4, 4].tolist() == list(range(10))
    assert len(views().subset(torch.tensor([1, 2]))) == 2


def test_fixmatch_learns_from_confident_classes_alone():
    first = torch.tensor([[9.0, 0.0], [0.1, 0.0]], requires_grad=True)
    second = torch.tensor([[0.0, 1.0], [5.0, 0.0]], requires_grad=True)
    loss = semi.fixmatch(first, second)
    assert loss.item() == pytest.approx(F.cross_entropy(second[:1], torch.tensor([0])).item() / 2)
    loss.backward()
    assert first.grad is None
    assert second.grad is not None
    assert second.grad[1].abs().sum() == 0


def test_the_squared_difference_is_of_probabilities():
    first, second = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 3.0]]).log1p()
    assert semi.squared_difference(first, second).item() == pytest.approx(10 * 0.3**2)


def test_the_teacher_is_the_moving_average_and_zero_where_weights_are_pruned():
    model = semi.with_teacher(nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, affine=False)))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
        model.teacher_0_weight.copy_(torch.tensor([[2.0, 5.0], [2.0, 1.0]]))
    inputs = tuple(torch.randn(4, 2, generator=Seed(n).generator()) for n in range(3))
    outputs = semi.logits_with_teacher(model, inputs)
    teacher = torch.tensor([[1.99, 0.0], [2.0, 1.02]])
    assert torch.allclose(model.teacher_0_weight, teacher)
    assert torch.allclose(outputs[:, 1], F.batch_norm(inputs[0] @ teacher.T, None, None, training=True))
    assert not outputs[:, 1].requires_grad or outputs[:, 0].requires_grad
    # The statistics are those of the model itself.
    assert int(model[1].num_batches_tracked) == 1
    assert "teacher_0_weight" in model.state_dict()
    model.eval()
    assert semi.logits_with_teacher(model, inputs).shape == (4, 2)
    assert torch.allclose(model.teacher_0_weight, teacher)


def test_parameters_whose_names_differ_in_a_dot_alone_have_a_teacher_each():
    class Near(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.a_weight = nn.Linear(2, 2, bias=False), nn.Parameter(torch.full((2, 2), 3.0))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.a(inputs) @ self.a_weight

    model = semi.with_teacher(Near())
    inputs = tuple(torch.randn(4, 2, generator=Seed(n).generator()) for n in range(3))
    target = semi.logits_with_teacher(model, inputs)[:, 1]
    assert torch.allclose(target, inputs[0] @ model.a.weight.T @ model.a_weight, atol=1e-6)
    assert len([name for name in model.state_dict() if name.startswith("teacher_")]) == 2


def test_in_a_masked_training_the_teacher_has_the_zeros_of_the_mask():
    problem = semi.semi_supervised(digits(ALL, Seed(0)), given("mean-teacher"), Seed(0), "test")
    assert problem.adapt is not None
    model = problem.adapt(build_network("mlp-8", problem.shape, 10))
    mask = Mask({"hidden1.weight": torch.rand(8, 64, generator=Seed(0).generator()) < 0.5})
    with torch.no_grad():
        model.hidden1.weight.mul_(mask["hidden1.weight"])
    weights = fit(model, problem.task, Training(epochs=1, batch_size=30, lr=0.1), Seed(0), mask=mask).weights
    assert not weights["teacher_hidden1_weight"][~mask["hidden1.weight"]].any()
    assert weights["teacher_hidden1_weight"].any()


def test_the_contrastive_loss_compares_each_view_with_all_others():
    first, second = (torch.randn(3, 4, generator=Seed(n).generator(), dtype=torch.float64) for n in (1, 2))
    both = F.normalize(torch.cat([first, second]), dim=1)
    total = 0.0
    for place in range(6):
        similar = [float(both[place] @ both[other]) / 0.5 for other in range(6)]
        others = torch.tensor([value for other, value in enumerate(similar) if other != place])
        total += float(others.logsumexp(0)) - similar[(place + 3) % 6]
    assert nt_xent(first, second).item() == pytest.approx(total / 6)


def test_self_supervised_choices_measure_the_loss_alone_and_probes_read_features():
    problem = self_supervised(digits(DataOptions(examples=90), Seed(0)), "test")
    model = build_network("mlp-bn-8", problem.shape, problem.classes)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 64)
    inputs = torch.randn(2, 1, 8, 8, generator=Seed(0).generator())
    assert torch.equal(features(model.eval(), inputs), model[:-1](inputs))
    assert list(problem.task.evaluate(model, "validation").metrics) == ["loss"]
    measured = problem.task.evaluate(model, "test")
    assert list(measured.metrics) == ["loss", "linear_probe", "knn_probe"]
    assert 0.5 < measured.error < 1.5
    inputs, targets = next(problem.task.train.shuffled(30, Seed(0), 0))[0]
    assert targets.shape == (30, 0)
    assert simclr_loss(model.train(), (inputs, targets)).requires_grad
    assert problem.adapt is not None
    with pytest.raises(SwampError, match="needs a network that ends in a linear layer, got Conv2d"):
        problem.adapt(nn.Conv2d(1, 1, 3))


def test_strong_augmentation_changes_contrast_and_fills_a_square_with_the_mean():
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=Seed(0).generator())
    filled = contrast_cutout(contrast=0, cutout=0.5)(images, Seed(1).generator())
    assert filled.dtype == torch.uint8
    for one, image in zip(filled, images, strict=True):
        assert 10 <= int((one != image).sum()) <= 16
        assert set(one[one != image].tolist()) == {round(image.float().mean().item())}
    brighter = contrast_cutout(contrast=0.5, cutout=0)(images, Seed(1).generator())
    assert not torch.equal(brighter, images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labelled", "91"], "91 labelled examples were requested, but the training data have 90"),
        (["--labelled", "9"], r"leave 8 for training after 1 are held out for validation, fewer than the 10 classes"),
        (["--labelled", "-1"], "labelled is -1; expected a number of training examples"),
        (["--objective", "fixmach"], "unknown objective 'fixmach'. Did you mean fixmatch"),
        (
            ["--task", "digits", "--labelled", "40"],
            "--labelled has no effect: digits does not read it; tasks that do: digits-few-labels, ",
        ),
        (
            ["--task", "digits-clusters", "--objective", "fixmatch"],
            "--objective has no effect: digits-clusters does not read it",
        ),
    ],
)
def test_labels_and_losses_that_cannot_be_had_are_refused_before_any_work(options, message, capsys, tmp_path):
    arguments = ["run", "--task", "digits-few-labels", "--examples", "90", "--out", str(tmp_path / "run"), *options]
    if "--task" in options:
        arguments[1:3] = []
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert not (tmp_path / "run").exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert re.search(message, lines[0])


def test_all_examples_may_be_labelled():
    problem = build_problem("digits-few-labels", "mlp-8", DataOptions(examples=90, validation=0.0), Seed(0))
    assert problem.task.validation is None
    assert len(problem.task.train.labelled) == len(problem.task.train) == 90
