"""What the tests of all criteria share: data to look at, and small networks whose scores a reader can work out."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.datasets import build_network
from swamp.masks import Mask
from swamp.scores import ScoringContext
from swamp.training import Seed
from swamp.training.rng import isolated

LOOKING = ("snip", "grasp", "taylor", "fisher")


def context(*batches: tuple[Any, Tensor], **options: Any) -> ScoringContext:
    return ScoringContext(torch.Generator().manual_seed(0), lambda: iter(batches), **options)


def batches_of(inputs: Tensor, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def examples(count: int, *shape: int, classes: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Float64 inputs around 0.5, and targets that go round the classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64) + 0.5, torch.arange(count) % classes


def network(name: str, *shape: int, classes: int = 3) -> nn.Module:
    """In float64, with BatchNorm as it is after some training, so that its two modes differ."""
    with isolated(Seed(3).at("init")):
        model = build_network(name, shape, classes).double()
        model.train()
        for _ in range(3):
            model(torch.randn(16, *shape, dtype=torch.float64))
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.bias, -0.2, 0.2)
    return model


class Fields(Mapping[str, Tensor]):
    """Inputs by name that are no dict, as tokenizers give them."""

    def __init__(self, **fields: Tensor) -> None:
        self.fields = fields

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)


def linear(*weights: list[list[float]]) -> nn.Sequential:
    """Layers without biases, in float64."""
    layers = [nn.Linear(len(rows[0]), len(rows), bias=False) for rows in weights]
    with torch.no_grad():
        for layer, rows in zip(layers, weights, strict=True):
            layer.double().weight.copy_(torch.tensor(rows))
    return nn.Sequential(*layers)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(1) - targets).square().mean() / 2


# y = 2 x1 - x2; the slope of (y - t)^2 / 2 is (y - t) x.
# First example: y = 1, slope (1, 1). Second: y = -1, y - t = -2, slope (-2, -6).
TWO = torch.tensor([[1.0, 1.0], [1.0, 3.0]], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The prunable weights."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach() for name in Mask.ones(model)}


def by_backward(model: nn.Module, batches: list[tuple[Any, Tensor]]) -> list[dict[str, Tensor]]:
    """The gradients of the prunable weights, batch by batch, in the mode the model is in."""
    slopes: list[dict[str, Tensor]] = []
    for inputs, targets in batches:
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        slopes.append({name: grad.clone() for name in weights_of(model) if (grad := grads[name]) is not None})
    return slopes


def mean_of(slopes: list[dict[str, Tensor]], power: int = 1) -> dict[str, Tensor]:
    """Mean over batches of the gradients' powers."""
    return {name: torch.stack([slope[name] ** power for slope in slopes]).mean(0) for name in slopes[0]}
