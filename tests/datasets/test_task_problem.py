import subprocess
import sys
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from swamp.datasets import TASKS, task_named
from swamp.datasets.problem import DataOptions, Normalise, split, split_index
from swamp.errors import SwampError
from swamp.models import NETWORKS
from swamp.training.augment import crop_flip
from swamp.training.data import TensorData
from swamp.training.rng import Seed


def counted(examples: int) -> TensorData:
    """Example i is the image whose pixels are i."""
    numbers = torch.arange(examples)
    return TensorData(numbers.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), numbers, augment=crop_flip(1))


@given(st.integers(2, 200), st.floats(0, 0.7), st.integers(0, 2**40))
def test_the_two_parts_are_disjoint_and_together_everything(count: int, share: float, number: int):
    train, held_out = split_index(count, DataOptions(validation=share), Seed(number))
    parts = train if held_out is None else torch.cat([train, held_out])
    assert sorted(parts.tolist()) == list(range(count))
    assert (held_out is None) == (share == 0)


def test_the_share_is_of_all_training_examples_and_examples_are_of_the_rest(seed: Seed):
    train, held_out = split(counted(100), DataOptions(validation=0.29, examples=50), seed)
    assert held_out is not None
    assert (len(train), len(held_out)) == (50, 29)
    assert torch.equal(train.targets, cast(Tensor, train.inputs)[:, 0, 0, 0])


def test_the_split_is_a_function_of_the_seed_alone(seed: Seed):
    options = DataOptions(validation=0.5)
    first, again, other = (split_index(100, options, s)[0] for s in (seed, Seed(7), Seed(8)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fewer_examples_leave_the_held_out_ones_as_they_are_and_are_a_part_of_more(seed: Seed):
    more, held_out_more = split_index(100, DataOptions(examples=60), seed)
    fewer, held_out_fewer = split_index(100, DataOptions(examples=20), seed)
    assert torch.equal(more[:20], fewer)
    assert held_out_more is not None
    assert held_out_fewer is not None
    assert torch.equal(held_out_more, held_out_fewer)


def test_held_out_examples_are_never_augmented(seed: Seed):
    train, held_out = split(counted(20), DataOptions(), seed)
    assert train.augment is not None
    assert held_out is not None
    assert held_out.augment is None


def test_without_a_share_nothing_is_held_out_and_nothing_copied(seed: Seed):
    data = counted(5)
    assert split(data, DataOptions(validation=0), seed) == (data, None)


def test_a_small_share_holds_out_at_least_one(seed: Seed):
    _, held_out = split_index(3, DataOptions(validation=0.01), seed)
    assert held_out is not None
    assert len(held_out) == 1


def test_more_examples_than_there_are_is_an_error_with_the_numbers(seed: Seed):
    with pytest.raises(SwampError, match="91 training examples were requested, but of 100 there remain 90"):
        split(counted(100), DataOptions(examples=91), seed)
    with pytest.raises(SwampError, match="remain 0"):
        split(counted(1), DataOptions(), seed)


@pytest.mark.parametrize(
    "wrong",
    [{"examples": -1}, {"validation": 1.0}, {"validation": -0.1}, {"workers": -1}],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, float]):
    with pytest.raises(SwampError, match=f"{next(iter(wrong))} is "):
        DataOptions(**wrong)  # pyright: ignore[reportArgumentType]


def test_normalise_equals_the_formula_on_each_channel():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    got = Normalise((0.0, 0.2, 0.5), (1.0, 0.5, 0.25))(images)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.flatten(), torch.tensor([0.0, 0.0, 2.0]))


def test_a_name_that_does_not_exist_brings_the_nearest():
    with pytest.raises(SwampError, match=r"unknown task 'cifar10'. Did you mean cifar-10"):
        task_named("cifar10")
    assert task_named("mnist1d") is TASKS["mnist1d"]


def test_each_task_and_network_has_a_line_that_describes_it():
    lines = [(builder.__doc__ or "").splitlines()[0] for builder in TASKS.values()]
    assert all(20 < len(line) < 110 and line.endswith(".") for line in lines)
    assert all(20 < len(line) < 110 for line in NETWORKS.values())


@pytest.mark.slow
def test_importing_tasks_imports_no_library_that_only_some_tasks_need():
    heavy = "{'mnist1d', 'matplotlib', 'sklearn', 'PIL', 'pooch', 'transformers', 'datasets', 'pyarrow'}"
    code = f"import sys, swamp.datasets; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
