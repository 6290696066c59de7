"""GpuNetwork: an exported network on a GPU, dense except for layers with a 2:4 pattern where that is faster."""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured  # pyright: ignore[reportUnknownVariableType]

from swamp.errors import first_line
from swamp.runtime.dense import DenseNetwork, ExportedNetwork
from swamp.runtime.program import Node, Program, Ref, map_refs
from swamp.runtime.rewrite import fold_batchnorm

_ROUNDS = 20


@dataclass(frozen=True)
class LayerTiming:
    """Seconds of a call of a linear layer with a 2:4 pattern."""

    dense: float
    sparse: float | None
    """None if torch has no sparse product for it."""
    unsupported_reason: str = ""
    """The reason that torch gives."""

    @property
    def uses_sparse(self) -> bool:
        """Whether the sparse product is used."""
        return self.sparse is not None and self.sparse < self.dense


class GpuNetwork(ExportedNetwork):
    """An exported network on a device. Inputs and outputs have the dtypes of the network that was traced.

    Each linear layer with a 2:4 pattern (at most two active weights among four neighbouring inputs) is timed as a dense
    and as a semi-structured product of torch, which exists for float16 and bfloat16, and the faster one is kept.

    Args:
        program: What `trace` or `read` returned.
        device: Where the network is executed.
        dtype: The type in which it computes.
        batch: The batch size to time layers with.

    Attributes:
        layers: Module path -> measured times, for the layers with a 2:4 pattern.

    Raises:
        SwampError: A call raises it for inputs of another shape or dtype, and for inputs that require gradients.
    """

    def __init__(self, program: Program, device: torch.device, dtype: torch.dtype, *, batch: int = 32) -> None:
        super().__init__(in_dtype(fold_batchnorm(program), dtype))
        self.dense = DenseNetwork(self.program, device).eval().to(device)
        for name, buffer in self.dense.named_buffers():
            if buffer.is_floating_point():
                setattr(self.dense, name, buffer.to(dtype))
        self.device, self.dtype = device, dtype
        self.layers: dict[str, LayerTiming] = {}
        for node in self.program.nodes:
            weight = node.args[1] if node.op == "linear" else None
            if isinstance(weight, Ref) and is_two_of_four(self.program.tensors.get(weight.name)):
                self._tune(node, weight.name, batch)

    def execute(self, inputs: Sequence[Tensor], batch: int) -> Any:
        """The output of the network, on the device."""
        output = self.dense.execute([_cast(tensor.to(self.device), self.dtype) for tensor in inputs])
        return map_refs(output, lambda tensor: _cast(tensor, torch.float32), Tensor)

    def _tune(self, node: Node, name: str, batch: int) -> None:
        """Time the dense and the sparse product of a layer, and keep the faster one."""
        attribute = self.dense.attribute(name)
        weight = getattr(self.dense, attribute)
        shape = self.program.shape_of(node.args[0].name) or (None, weight.shape[1])
        sizes = [batch if size is None else size for size in shape]
        inputs = torch.ones(sizes, dtype=self.dtype, device=self.device)
        dense = median_seconds(lambda: nn.functional.linear(inputs, weight), self.device)
        try:
            with warnings.catch_warnings():
                # torch warns at each first use that the class is a prototype.
                warnings.simplefilter("ignore")
                sparse = to_sparse_semi_structured(weight)
                seconds = median_seconds(lambda: nn.functional.linear(inputs, sparse), self.device)
                timing = LayerTiming(dense, seconds)
        except RuntimeError as error:
            timing, sparse = LayerTiming(dense, None, first_line(error)), weight
        self.layers[node.module or node.name] = timing
        if timing.uses_sparse:
            setattr(self.dense, attribute, sparse)


def in_dtype(program: Program, dtype: torch.dtype) -> Program:
    """The program with `dtype` in place of float32, where an operator names a type."""

    def converted(value: torch.dtype) -> torch.dtype:
        return dtype if value == torch.float32 else value

    def change(node: Node) -> Node:
        args, kwargs = map_refs((node.args, dict(node.kwargs)), converted, torch.dtype)
        return replace(node, args=args, kwargs=kwargs)

    return replace(program, nodes=tuple(change(node) for node in program.nodes))


def is_two_of_four(weight: Tensor | None) -> bool:
    """Whether at most two of every four neighbouring inputs have an active weight."""
    if weight is None or weight.dim() != 2 or weight.shape[1] % 4:
        return False
    return bool(((weight.reshape(len(weight), -1, 4) != 0).sum(-1) <= 2).all())


@torch.no_grad()
def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a call, including its work on the device."""

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    times: list[float] = []
    for _ in range(_ROUNDS):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
