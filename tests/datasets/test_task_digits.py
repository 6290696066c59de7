import sys
from typing import cast

import pytest
import torch

from swamp.datasets import build_problem, task_named
from swamp.datasets.problem import DataOptions
from swamp.errors import SwampError
from swamp.training.data import TensorData
from swamp.training.rng import Seed


def test_sizes_types_and_scale(seed: Seed):
    problem = task_named("digits")(DataOptions(validation=0), seed)
    assert (problem.shape, problem.classes) == ((1, 8, 8), 10)
    assert (len(problem.task.train), len(problem.task.test)) == (1438, 359)
    assert cast(torch.Tensor, cast(TensorData, problem.task.train).inputs).dtype == torch.uint8
    images, _ = next(cast(TensorData, problem.task.train).in_order(1438))
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01


def test_the_test_set_is_the_same_for_every_seed_and_shares_nothing_with_the_training_set():
    one, other = (task_named("digits")(DataOptions(validation=0), Seed(number)).task for number in (1, 2))
    tests = [cast(torch.Tensor, cast(TensorData, task.test).inputs).flatten(1) for task in (one, other)]
    assert torch.equal(*tests)
    # Images that occur twice in the bundled data: 0. So a shared one would be a leak.
    train = cast(torch.Tensor, cast(TensorData, one.train).inputs).flatten(1)
    assert len(torch.cat([train, tests[0]]).unique(dim=0)) == 1797


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, seed: Seed):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SwampError, match=r"needs sklearn.*pip install 'swamp\[digits\]'"):
        task_named("digits")(DataOptions(), seed)


def test_chosen_classes_are_numbered_from_0_and_drawn_before_the_split():
    every, some = (
        build_problem("digits", "mlp-8", DataOptions(classes=classes, validation=0.1), Seed(0))
        for classes in ("", "1,5-7")
    )
    assert some.classes == 4
    for name, data in some.task.splits.items():
        assert set(data.targets.tolist()) == {0, 1, 2, 3}, name
    assert isinstance(some.task.test.inputs, torch.Tensor)
    six = every.task.test.inputs[every.task.test.targets == 6]
    assert torch.equal(some.task.test.inputs[some.task.test.targets == 2], six)


@pytest.mark.parametrize("classes", ["0-10", "5-3", "a", "3", "1,,2", "-1"])
def test_classes_that_are_none_are_refused(classes):
    with pytest.raises(SwampError, match="classes is"):
        build_problem("digits", "mlp-8", DataOptions(classes=classes), Seed(0))


def test_a_task_without_a_choice_of_classes_says_so():
    with pytest.raises(SwampError, match="movie-reviews has no choice of classes"):
        build_problem("movie-reviews", "encoder-1-32", DataOptions(classes="0,2", examples=8), Seed(0))
