import hypothesis
import pytest
import torch
from torch import nn

from swamp.training import Seed, Task, TensorData, isolated

from . import poison

# One thread: other numbers of threads round differently, and tests run beside each other.
torch.set_num_threads(1)

# The same examples each time: a tree passes or does not. New ones are looked for with --hypothesis-profile=search.
# No limit on an example's time: machines are busy, and a slow one is not a wrong one.
hypothesis.settings.register_profile("swamp", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("swamp")


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping classes in 6 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 3, (count,), generator=generator)
    return centres[targets] + torch.randn(count, 6, generator=generator), targets


@pytest.fixture
def task() -> Task:
    return Task(TensorData(*blobs(96, 1)), TensorData(*blobs(64, 2)), TensorData(*blobs(48, 3)))


@pytest.fixture
def mlp() -> nn.Module:
    with isolated(Seed(7).at("init")):
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def normed() -> nn.Module:
    with isolated(Seed(7).at("init")):
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


@pytest.fixture
def poisoned():
    return poison.poisoned


@pytest.fixture
def loses_its_gradient():
    return poison.loses_its_gradient
