"""A GPU step captured once as a CUDA graph and replayed: one launch from Python instead of hundreds."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_WARM_UPS = 3


class CudaGraph:
    """Replays `step` from a graph captured at its first call.

    Inputs must keep their shapes; they are copied into the graph's buffers. Capturing runs a few warm-up steps; their
    changes to `state` are undone.

    Args:
        step: Changes `state` in place.
        state: All tensors that `step` changes.
    """

    def __init__(self, step: Callable[..., None], state: Sequence[Tensor]) -> None:
        self.step, self.state = step, state
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: Any = None

    def __call__(self, *inputs: Any) -> None:
        """One step on these tensors (or nested lists and mappings of them)."""
        if self.graph is None:
            self.graph = self._captured(inputs)
        else:
            tree_map(_copy, self.inputs, inputs)
        self.graph.replay()

    def _captured(self, inputs: tuple[Any, ...]) -> torch.cuda.CUDAGraph:
        self.inputs = tree_map(torch.clone, inputs)
        before = [tensor.clone() for tensor in self.state]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self.step(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(*self.inputs)
        for tensor, original in zip(self.state, before, strict=True):
            tensor.copy_(original)
        return graph


def _copy(kept: Tensor, given: Tensor) -> None:
    kept.copy_(given, non_blocking=True)
