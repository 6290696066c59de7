import hashlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swamp.training import Seed
from swamp.training.rng import isolated, permutation


def test_a_seed_is_the_hash_of_its_root_and_path():
    expected = int.from_bytes(hashlib.sha256(b"7/'cycle'/3/'particle'/1").digest()[:8], "big") // 2
    assert Seed(7).at("cycle", 3).at("particle", 1).number() == expected < 2**63


def test_names_and_numbers_are_different_steps_of_a_path():
    paths = [(), (1,), ("1",), (1, 2), (12,), ("1/2",), ("a", "b"), ("a/b",), ("a'/'b",)]
    assert len({Seed(0, path).number() for path in paths}) == len(paths)


@given(st.integers(0, 2**40), st.integers(0, 500), st.integers(1, 60))
def test_order_holds_every_example_once_and_depends_on_seed_and_epoch_alone(root: int, epoch: int, examples: int):
    first = permutation(Seed(root), epoch, examples)
    torch.rand(3)
    assert torch.equal(first, permutation(Seed(root), epoch, examples))
    assert sorted(first.tolist()) == list(range(examples))


def test_order_differs_between_epochs_and_between_particles():
    particle = [Seed(0).at("cycle", 1, "particle", index) for index in (0, 1)]
    orders = [tuple(permutation(seed, epoch, 50).tolist()) for seed in particle for epoch in range(3)]
    assert len(set(orders)) == 6


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_isolated_gives_every_generator_a_stream_of_the_seed_and_restores_it(generators):
    before = generators()
    with isolated(Seed(3)):
        first = draw()
    with isolated(Seed(3)):
        again = draw()
    with isolated(Seed(4)):
        other = draw()
    assert first == again
    assert not set(first) & set(other)
    assert generators() == before


def test_isolated_restores_the_generators_after_an_error(generators):
    before = generators()
    with pytest.raises(ZeroDivisionError), isolated(Seed(3)):
        raise ZeroDivisionError(draw())
    assert generators() == before
