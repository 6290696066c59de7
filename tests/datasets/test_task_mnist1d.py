import importlib.metadata
import random
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from swamp.datasets import bundled, task_named
from swamp.datasets.bundled import generate
from swamp.datasets.problem import DataOptions
from swamp.errors import SwampError
from swamp.training.data import TensorData
from swamp.training.rng import Seed


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Generate a hundredth of what is asked for; what was asked."""
    sizes: list[tuple[int, int]] = []

    def few(train: int, test: int, changes: Mapping[str, float] | None) -> dict[str, torch.Tensor]:
        sizes.append((train, test))
        return generate(train // 100, test // 100, changes)

    monkeypatch.setattr(bundled, "generate", few)
    return sizes


def test_it_is_what_the_published_generator_makes():
    from mnist1d import data  # pyright: ignore

    made = generate(80, 20)
    settings = data.get_dataset_args()  # pyright: ignore
    # The published set is 4,000 + 1,000 by the generator's own defaults.
    assert (settings.num_samples, settings.train_split, settings.seed) == (5000, 0.8, 42)  # pyright: ignore
    settings.num_samples = 100  # pyright: ignore
    states = random.getstate(), np.random.get_state()
    published = data.make_dataset(settings)  # pyright: ignore
    random.setstate(states[0])
    np.random.set_state(states[1])

    assert torch.equal(made["train_inputs"], torch.tensor(published["x"], dtype=torch.float32))
    assert torch.equal(made["test_inputs"], torch.tensor(published["x_test"], dtype=torch.float32))
    assert torch.equal(made["train_targets"], torch.tensor(published["y"]))  # pyright: ignore
    assert torch.equal(made["test_targets"], torch.tensor(published["y_test"]))  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("mnist1d", (4_000, 1_000)), ("mnist1d-10k", (10_000, 5_000)), ("mnist1d-shifted", (10_000, 5_000))],
)
def test_sizes_types_and_parts(asked: list[tuple[int, int]], seed: Seed, name: str, sizes: tuple[int, int]):
    problem = task_named(name)(DataOptions(), seed)
    assert asked == [sizes]
    assert (problem.shape, problem.classes) == ((40,), 10)
    task = problem.task
    assert task.validation is not None
    assert (len(task.train), len(task.validation), len(task.test)) == (
        sizes[0] // 100 * 0.9,
        sizes[0] // 100 * 0.1,
        sizes[1] // 100,
    )
    inputs, targets = next(task.train.shuffled(8, Seed(0), 0))
    assert (inputs.shape, inputs.dtype, targets.dtype) == ((8, 40), torch.float32, torch.int64)


@pytest.mark.usefixtures("asked")
def test_augmentation_is_for_training_alone_and_can_be_refused(seed: Seed):
    task = task_named("mnist1d")(DataOptions(), seed).task
    assert cast(TensorData, task.train).augment is not None
    assert cast(TensorData, task.validation).augment is None
    assert cast(TensorData, task.test).augment is None
    assert cast(TensorData, task_named("mnist1d")(DataOptions(augment=False), seed).task.train).augment is None


def test_generating_leaves_the_global_generators_as_they_were():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    wanted = (random.random(), np.random.rand(), torch.rand(()).item())
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    generate(20, 10)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == wanted


def test_the_generators_are_put_back_even_where_generating_fails(monkeypatch: pytest.MonkeyPatch):
    from mnist1d import data  # pyright: ignore

    def seed_and_fail(settings: object) -> None:
        del settings
        np.random.seed(0)
        raise RuntimeError("broken")

    monkeypatch.setattr(data, "make_dataset", seed_and_fail)
    np.random.seed(5)
    wanted = np.random.rand()
    np.random.seed(5)
    with pytest.raises(RuntimeError, match="broken"):
        generate(20, 10)
    assert np.random.rand() == wanted


def test_it_is_generated_once_and_named_after_the_packages_version(
    cache: Path, asked: list[tuple[int, int]], seed: Seed
):
    first, again = (task_named("mnist1d")(DataOptions(), seed).task for _ in range(2))
    assert len(asked) == 1
    (file,) = cache.iterdir()
    assert file.name.startswith("mnist1d-0.")
    assert torch.equal(cast(TensorData, first.train).targets, cast(TensorData, again.train).targets)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, seed: Seed):
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(SwampError, match="pip install 'mnist1d'"):
        task_named("mnist1d")(DataOptions(), seed)


def test_shifted_signals_are_other_numbers_of_the_same_form(asked: list[tuple[int, int]], seed: Seed):
    tasks = (task_named(name)(DataOptions(), seed).task for name in ("mnist1d-10k", "mnist1d-shifted"))
    plain, shifted = (cast(torch.Tensor, cast(TensorData, task.test).inputs) for task in tasks)
    assert asked == [(10_000, 5_000)] * 2
    assert plain.shape == shifted.shape
    assert not torch.equal(plain, shifted)
    assert abs(float(shifted.std()) - 1) < 0.1
