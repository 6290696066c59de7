from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swamp.backends import Particle, Ticket, TrainRequest
from swamp.masks import Mask
from swamp.training import Seed, Task, TensorData, Training
from swamp.training.rng import isolated

from .forked import SEEDS, TRAINING, Together

State = Mapping[str, Tensor]


@pytest.fixture
def same() -> Callable[[State, State], bool]:
    """Whether two states are equal in names, types and every bit."""

    def compare(a: State, b: State) -> bool:
        return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)

    return compare


@pytest.fixture
def image_task() -> Task:
    """18 images of 1 x 4 x 4 and 3 classes, float64; 3 steps an epoch at batch size 6."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(18, 1, 4, 4, generator=generator, dtype=torch.float64)
    data = TensorData(inputs, torch.randint(0, 3, (18,), generator=generator))
    return Task(data, data)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


def _convolutional() -> nn.Module:
    body = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(64, 3))


def _dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


@pytest.fixture(params=[_mlp, _convolutional, _dropout], ids=["mlp", "convolutional", "dropout"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    with isolated(Seed(0).at("init")):
        return request.param().double()


@pytest.fixture
def mlp() -> nn.Module:
    with isolated(Seed(0).at("init")):
        return _mlp().double()


def _two_thirds(model: nn.Module) -> Mask:
    return Mask({name: torch.arange(p.numel()).view(p.shape) % 3 != 0 for name, p in Mask.ones(model).items()})


@pytest.fixture
def two_thirds() -> Callable[[nn.Module], Mask]:
    """A mask that prunes every third weight."""
    return _two_thirds


@pytest.fixture
def ticket_of() -> Callable[..., Ticket]:
    """A ticket of other weights than the model's own."""

    def make(model: nn.Module, seed: int = 5) -> Ticket:
        generator = torch.Generator().manual_seed(seed)
        state = model.state_dict()
        trained = {name for name, _ in model.named_parameters()}
        return Ticket(
            {
                n: v + 0.1 * torch.randn(v.shape, generator=generator, dtype=v.dtype) if n in trained else v
                for n, v in state.items()
            },
            7,
        )

    return make


@pytest.fixture
def together(model, image_task, tmp_path) -> Together:
    return Together(model, image_task, tmp_path)


@pytest.fixture
def small(mlp, image_task, tmp_path) -> Together:
    return Together(mlp, image_task, tmp_path)


@pytest.fixture
def trained(two_thirds, ticket_of) -> Callable[..., list[Particle]]:
    def train(backend: Any, model: nn.Module, training: Training = TRAINING, **others: Any) -> list[Particle]:
        seeds = others.pop("seeds", SEEDS)
        return backend.train(TrainRequest(ticket_of(model), two_thirds(model), training, seeds, **others))

    return train
