"""The smallest model that can be held, and how it is stepped."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swamp.masks import Mask


def bits(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


class Sum(nn.Module):
    """Its output is the sum of the inputs times its weights, so that the gradient is the input."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.weight * inputs).sum()


FIRST_PRUNED = Mask({"weight": bits(0, 1)})


ONES = torch.ones(2, dtype=torch.float64)


def step(model: nn.Module, optimizer: Optimizer, inputs: Tensor = ONES) -> None:
    optimizer.zero_grad()
    model(inputs).backward()
    optimizer.step()


def slots(optimizer: Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """The state tensors of a weight's shape."""
    return {key: value for key, value in optimizer.state[weight].items() if getattr(value, "shape", 0) == weight.shape}
