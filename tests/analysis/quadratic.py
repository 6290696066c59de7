"""A network whose Hessian is known: its loss is w'Aw / 2."""

import torch
from torch import Tensor, nn

from swamp.training import Task, TensorData


class Quadratic(nn.Module):
    """Two parameters, `first` (4) and `second` (the rest), and outputs that are w'Aw / 2 for w of both."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(4, dtype=matrix.dtype))
        self.second = nn.Parameter(torch.ones(len(matrix) - 4, dtype=matrix.dtype))
        self.register_buffer("matrix", matrix)

    def forward(self, inputs: Tensor) -> Tensor:
        w = torch.cat([self.first, self.second])
        return (0.5 * w @ self.matrix @ w).expand(len(inputs))


def planted(matrix: Tensor) -> tuple[Quadratic, Task]:
    """The network and a task that asks for its outputs' mean."""
    data = TensorData(torch.zeros(6, 1), torch.zeros(6))
    return Quadratic(matrix), Task(data, data, loss=lambda outputs, targets: outputs.mean())


def symmetric(size: int, seed: int = 0) -> Tensor:
    """Random, float64, with eigenvalues on both sides of zero."""
    full = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return full + full.T
