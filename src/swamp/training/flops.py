"""Floating-point operations (FLOPs) per example, for the active weights."""

import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]

from swamp.batches import batch_to
from swamp.masks import Mask
from swamp.model_copy import copied_model
from swamp.training.memory_format import to_memory_format_of
from swamp.training.options import Training
from swamp.training.rng import Seed, isolated
from swamp.training.task import Task

_FORWARDS_PER_STEP = 3
"""A training step costs three forward passes: one forward and two backward (Evci et al. 2020, appendix H)."""

Use = Callable[[Tensor, float, slice], None]
"""(weight, multiplications of each of its elements, the rows concerned)."""


@dataclass(frozen=True, eq=False)
class FlopCounter:
    """FLOPs of one example in the linear, convolutional and attention projection layers of a model.

    An active weight costs two FLOPs, a multiplication and an addition, each time it is used: per sequence position,
    per output position of a convolution (padding included), per input position of a transposed convolution. As in RigL
    (Evci et al. 2020, appendix H) nothing else is counted: normalisation, activations, biases, embeddings, pooling,
    products of activations in attention, parameters used outside of these layers.

    Args:
        uses: Parameter name -> multiplications of each weight of a row in one forward pass, (rows,) float64.
        columns: Parameter name -> number of weights in a row.

    Example:
        >>> import torch
        >>> data = torch.randn(6, 8), torch.zeros(6, dtype=torch.long)
        >>> flops = FlopCounter.of(torch.nn.Linear(8, 3), Task.of(train=data, test=data))
        >>> flops.forward(None)
        48.0
    """

    uses: Mapping[str, Tensor]
    columns: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module, task: Task) -> "FlopCounter":
        """Count on the first example of the training data, on a copy of the model in eval mode.

        A BatchList is counted on its first batch, as the mean over the examples. If the forward pass of one example
        fails, a warning is given and each weight is counted once, as in a network of linear layers.
        """
        fresh = copied_model(model).eval()
        names = {id(parameter): name for name, parameter in fresh.named_parameters()}
        weights = {names[id(p)]: p for layer in fresh.modules() for p in _weights(layer) if id(p) in names}
        uses = {name: torch.zeros(len(weight), dtype=torch.float64) for name, weight in weights.items()}

        def use(weight: Tensor, times: float, rows: slice) -> None:
            if id(weight) in names:
                uses[names[id(weight)]][rows] += times

        try:
            with _recorded(fresh, use):
                examples = _run(fresh, task)
            uses = {name: times / examples for name, times in uses.items()}
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(
                f"FLOPs count every weight once: the forward pass of one example failed ({reason}).", stacklevel=2
            )
            uses = {name: torch.ones_like(times) for name, times in uses.items()}
        return cls(uses, {name: weight[0].numel() for name, weight in weights.items()})

    def by_layer(self, mask: Mask | None) -> dict[str, float]:
        """FLOPs of the forward pass of one example, per parameter. Parameters not in `mask` count as dense."""
        found: dict[str, float] = {}
        for name, times in self.uses.items():
            active = None if mask is None else mask.get(name)
            rows = self.columns[name] if active is None else active.flatten(1).sum(1).cpu().double()
            found[name] = 2 * float((times * rows).sum())
        return found

    def forward(self, mask: Mask | None) -> float:
        """FLOPs of the forward pass of one example. mask: None for the dense model."""
        return sum(self.by_layer(mask).values())

    def training_step(self, mask: Mask | None, training: Training) -> float:
        """FLOPs of a training step per example: three times the forward pass; six times with SAM and ASAM."""
        return _FORWARDS_PER_STEP * training.passes * self.forward(mask)


def _weights(layer: nn.Module) -> list[Tensor]:
    if isinstance(layer, nn.Linear | _ConvNd):
        return [layer.weight]
    if not isinstance(layer, nn.MultiheadAttention):
        return []
    found = (layer.in_proj_weight, layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    return [weight for weight in found if weight is not None]  # pyright: ignore[reportUnnecessaryComparison]


@contextmanager
def _recorded(model: nn.Module, use: Use) -> Generator[None]:
    """Call `use` for every multiplication by a weight inside the block."""

    def multiplied(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Tensor) -> None:
        if isinstance(layer, _ConvTransposeNd):
            inputs = args[0] if args else kwargs["input"]
            use(layer.weight, inputs.numel() / layer.in_channels, slice(None))
        else:
            width = layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
            use(layer.weight, outputs.numel() / width, slice(None))

    def attended(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("query", "key", "value")
        given = dict(zip(names, args, strict=False)) | kwargs
        positions = [given[name].numel() / given[name].shape[-1] for name in names]
        joint, size = layer.in_proj_weight, layer.embed_dim
        for part, (name, times) in enumerate(zip("qkv", positions, strict=True)):
            separate = getattr(layer, f"{name}_proj_weight")
            use(separate if joint is None else joint, times, _rows(part, size) if separate is None else slice(None))
        # torch uses this weight without calling its layer.
        use(layer.out_proj.weight, positions[0], slice(None))

    handles: list[Any] = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear | _ConvNd):
            handles.append(layer.register_forward_hook(multiplied, with_kwargs=True))
        elif isinstance(layer, nn.MultiheadAttention):
            handles.append(layer.register_forward_pre_hook(attended, with_kwargs=True))
    # In eval mode the fast path of transformers does not call the inner layers.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()


def _rows(part: int, size: int) -> slice:
    return slice(part * size, (part + 1) * size)


@torch.no_grad()
def _run(model: nn.Module, task: Task) -> int:
    """Forward pass on the first batch of size 1. Returns the number of examples in that batch."""
    device = next(model.parameters()).device
    with isolated(Seed(0).at("operations"), device):
        inputs, targets = batch_to(next(iter(task.train.in_order(1))), device)
        task.forward(model, to_memory_format_of(model, inputs))
    return len(targets)
