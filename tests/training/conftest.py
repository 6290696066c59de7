import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swamp.training import Seed, Task, TensorData
from swamp.training.rng import isolated

State = Mapping[str, Tensor]


@pytest.fixture
def same() -> Callable[[State, State], bool]:
    """Whether two states are equal in names, types and every bit."""

    def compare(a: State, b: State) -> bool:
        return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)

    return compare


@pytest.fixture
def generators() -> Callable[[], list[Any]]:
    """The state of every global generator, comparable with ==."""

    def state() -> list[Any]:
        numpy_state = [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]
        return [torch.get_rng_state().tolist(), numpy_state, random.getstate()]

    return state


@pytest.fixture
def small_task() -> Task:
    """20 examples in 4 dimensions, 3 classes, float64; 3 steps an epoch at batch size 6."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    data = TensorData(inputs, torch.randint(0, 3, (20,), generator=generator))
    return Task(data, data)


@pytest.fixture
def small_net() -> Callable[..., nn.Module]:
    """Initialised the same at every call, float64; `rich` has batch normalisation and dropout."""

    def build(rich: bool = False, seed: int = 0) -> nn.Module:
        middle = [nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)] if rich else [nn.Tanh()]
        with isolated(Seed(seed).at("init")):
            return nn.Sequential(nn.Linear(4, 8), *middle, nn.Linear(8, 3)).double()

    return build
