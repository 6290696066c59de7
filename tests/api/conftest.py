import pytest
import torch
from torch import nn

import swamp

TRAINING = swamp.Training(epochs=4, batch_size=16, lr=0.1, swa_fraction=0.5)
OPTIONS = {"sparsity": 0.75, "particles": 2, "prune_fraction": (0.5,), "barrier_threshold": 1.0, "training": TRAINING}


def network(number: int = 0, width: int = 16, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(number)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), activation(), nn.Linear(width, 3))


def other_network() -> nn.Module:
    return network(width=4)


def examples(number: int = 0) -> swamp.Task:
    x = torch.randn(128, 6, generator=torch.Generator().manual_seed(number))
    y = x[:, :3].argmax(1)
    return swamp.Task.of(train=(x[:64], y[:64]), test=(x[64:96], y[64:96]), validation=(x[96:], y[96:]))


@pytest.fixture
def model() -> nn.Module:
    return network()


@pytest.fixture
def task() -> swamp.Task:
    return examples()


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot is written after each step."""
    from swamp.api import python_run

    monkeypatch.setattr(python_run, "SNAPSHOT_SECONDS", 1e-9)
