"""Networks whose loss, as a function of their weights, is known by hand."""

import torch
from torch import Tensor, nn

from swamp.training import Task, TensorData

from .runs import Unread


class TwoWeights(nn.Module):
    """Outputs are the weights, for any input."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weights], dtype=torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight.expand(len(inputs), -1)


def at(*weights: float) -> dict[str, Tensor]:
    """A state of `TwoWeights`."""
    return {"weight": torch.tensor([weights])}


def double_well(outputs: Tensor, targets: Tensor) -> Tensor:
    """(w0^2 - 1)^2 + w1: minima at w0 = +-1, a barrier of 1 between them, and a slope along w1."""
    del targets
    return ((outputs[:, 0] ** 2 - 1) ** 2 + outputs[:, 1]).mean()


def half_the_loss(outputs: Tensor, targets: Tensor) -> float:
    """An error in [0, 1]: half the double well, at most 1."""
    return min(1.0, float(double_well(outputs, targets)) / 2)


def double_well_task() -> Task:
    """The double well, with test data that raises when it is read."""
    data = TensorData(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))
    unread = Unread(data.inputs, data.targets)
    return Task(data, unread, data, loss=double_well, metrics={}, error=half_the_loss)


class WeightsAndOffset(nn.Module):
    """Outputs are weight + offset, for any input; `offset` is not prunable."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size))
        self.offset = nn.Parameter(torch.zeros(size))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.weight + self.offset).expand(len(inputs), -1)


def state_without_offset(*weights: float) -> dict[str, Tensor]:
    """A state of `WeightsAndOffset` with offset 0."""
    return {"weight": torch.tensor([weights]), "offset": torch.zeros(len(weights))}


def squared_distance_task(centre: Tensor) -> Task:
    """Loss |w - centre|^2, and a tenth of it as the error."""
    data = TensorData(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        del targets
        return (outputs - centre.to(outputs)).square().sum(-1).mean()

    unread = Unread(data.inputs, data.targets)
    return Task(data, unread, data, loss=loss, metrics={}, error=lambda o, t: float(loss(o, t)) / 10)


class Quadratic(nn.Module):
    """Outputs are w'Aw / 2 for the two parameters `first` (4) and `second` (the rest); A is the Hessian."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(4, dtype=matrix.dtype))
        self.second = nn.Parameter(torch.ones(len(matrix) - 4, dtype=matrix.dtype))
        self.register_buffer("matrix", matrix)

    def forward(self, inputs: Tensor) -> Tensor:
        w = torch.cat([self.first, self.second])
        return (0.5 * w @ self.matrix @ w).expand(len(inputs))


def planted(matrix: Tensor) -> tuple[Quadratic, Task]:
    """The network with Hessian `matrix`, and a task with the mean of its outputs as the loss."""
    data = TensorData(torch.zeros(6, 1), torch.zeros(6))
    return Quadratic(matrix), Task(data, data, loss=lambda outputs, targets: outputs.mean())


def symmetric(size: int, seed: int = 0) -> Tensor:
    """A random symmetric matrix, float64, with positive and negative eigenvalues."""
    full = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return full + full.T
