"""On a GPU: dense, with products of 2:4 weights where the device has them and they are faster."""

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured  # pyright: ignore[reportUnknownVariableType]

from swamp.runtime.program import Dense, Program, Ref, Step, pattern
from swamp.runtime.rewrite import folded

_ROUNDS = 20


@dataclass(frozen=True)
class Layer:
    """A linear layer whose weights are 2:4, at the batch size that was asked for: seconds of a call."""

    dense: float
    sparse: float | None
    """None where there is no such product."""
    why: str = ""
    """Why there is none, in torch's words."""

    @property
    def chosen(self) -> bool:
        """Whether the sparse product is used."""
        return self.sparse is not None and self.sparse < self.dense


class OnGpu(nn.Module):
    """A program on a device, computed in `dtype`; takes and gives what the network does.

    Each linear layer whose weights are 2:4 (of every four neighbouring inputs at most two live) is timed dense and as
    torch's semi-structured product, and the faster is kept: `layers` tells. Such products are of float16 and bfloat16.
    Raises SwampError for inputs of another shape or type, and where gradients are asked for.
    """

    def __init__(self, program: Program, device: torch.device, dtype: torch.dtype, *, batch: int = 32) -> None:
        super().__init__()
        self.program = folded(program)
        self.dense = Dense(self.program).eval().to(device)
        for name, buffer in self.dense.named_buffers():
            if buffer.is_floating_point():
                setattr(self.dense, name, buffer.to(dtype))
        self.device, self.dtype = device, dtype
        self.layers: dict[str, Layer] = {}
        for step in self.program.steps:
            weight = step.args[1] if step.op == "linear" else None
            if isinstance(weight, Ref) and two_of_four(self.program.tensors.get(weight.name)):
                self._choose(step, weight.name, batch)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        """The network's output, on the device."""
        self.program.check(inputs)
        found = self.dense(*(self._narrow(tensor.to(self.device)) for tensor in inputs))
        return torch.utils._pytree.tree_map(_wide, found)  # pyright: ignore

    def _narrow(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _choose(self, step: Step, name: str, batch: int) -> None:
        """Time a layer's product dense and sparse, and keep the faster."""
        attribute = name.replace(".", "__")
        weight = getattr(self.dense, attribute)
        shape = self.program.shape_of(step.args[0].name) or (None, weight.shape[1])
        inputs = self._narrow(pattern(shape, torch.float32, batch).to(self.device))
        dense = seconds(lambda: nn.functional.linear(inputs, weight), self.device)
        try:
            with warnings.catch_warnings():
                # That the class is a prototype is said at every first use.
                warnings.simplefilter("ignore")
                sparse = to_sparse_semi_structured(weight)
                found = Layer(dense, seconds(lambda: nn.functional.linear(inputs, sparse), self.device))
        except RuntimeError as error:
            found, sparse = Layer(dense, None, str(error).splitlines()[0]), weight
        self.layers[step.module or step.name] = found
        if found.chosen:
            setattr(self.dense, attribute, sparse)


def two_of_four(weight: Tensor | None) -> bool:
    """Whether of every four neighbouring inputs at most two have weights."""
    if weight is None or weight.dim() != 2 or weight.shape[1] % 4:
        return False
    return bool(((weight.reshape(len(weight), -1, 4) != 0).sum(-1) <= 2).all())


@torch.no_grad()
def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of a call, the work on the device included."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    times: list[float] = []
    for _ in range(_ROUNDS):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
