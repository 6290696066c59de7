"""What an example costs: the floating point operations of the weights that live."""

import copy
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]

from swamp.masks import Mask
from swamp.training.data import batch_to
from swamp.training.memory_format import to_memory_format_of
from swamp.training.options import Training
from swamp.training.rng import Seed, isolated
from swamp.training.task import Task

_FORWARDS_A_PASS = 3
"""Forward, and backward for the activations and for the weights, each as much again (Evci et al. 2020, appendix H)."""

Use = Callable[[Tensor, float, slice], None]
"""(weight, multiplications of each of its numbers, rows of it that are meant)."""


@dataclass(frozen=True, eq=False)
class FlopCounter:
    """Floating point operations of one example in a model's linear, convolutional and attention projection layers.

    A weight costs a multiplication and an addition wherever it is used: once a position of a sequence, once an output
    position of a convolution (padding included), once an input position of a transposed one. As RigL counts (Evci et
    al. 2020), nothing else is: no normalisation, activation, bias, embedding or pooling, no products of activations
    with each other as in attention, and no parameter that a model multiplies by itself, outside of these layers.
    """

    uses: Mapping[str, Tensor]
    """Parameter name -> how often each weight of a row is multiplied in the forward pass of one example (rows,)."""
    columns: Mapping[str, int]
    """Parameter name -> weights in a row."""

    @classmethod
    def of(cls, model: nn.Module, task: Task) -> "FlopCounter":
        """Count on the first example of the training data, on a copy in eval mode; global generators stay.

        Data made of ready batches give their first batch and the mean over its examples. Where the forward pass fails
        on one example each weight counts as used once, as in a network of linear layers, with a warning.
        """
        fresh = copy.deepcopy(model).eval()
        names = {id(parameter): name for name, parameter in fresh.named_parameters()}
        weights = {names[id(p)]: p for layer in fresh.modules() for p in _weights(layer) if id(p) in names}
        uses = {name: torch.zeros(len(weight), dtype=torch.float64) for name, weight in weights.items()}

        def use(weight: Tensor, times: float, rows: slice) -> None:
            if id(weight) in names:
                uses[names[id(weight)]][rows] += times

        try:
            with _watched(fresh, use):
                examples = _run(fresh, task)
            uses = {name: times / examples for name, times in uses.items()}
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(f"operations count every weight once: one example cannot be run ({reason}).", stacklevel=2)
            uses = {name: torch.ones_like(times) for name, times in uses.items()}
        return cls(uses, {name: weight[0].numel() for name, weight in weights.items()})

    def by_layer(self, mask: Mask | None) -> dict[str, float]:
        """Operations of one example's forward pass by weight; those that `mask` does not name are dense (None: all)."""
        found: dict[str, float] = {}
        for name, times in self.uses.items():
            alive = None if mask is None else mask.get(name)
            rows = self.columns[name] if alive is None else alive.flatten(1).sum(1).cpu().double()
            found[name] = 2 * float((times * rows).sum())
        return found

    def forward(self, mask: Mask | None) -> float:
        """Operations of one example's forward pass."""
        return sum(self.by_layer(mask).values())

    def training_step(self, mask: Mask | None, training: Training) -> float:
        """Operations of training on one example: three forward passes' worth, twice as many with SAM and ASAM."""
        return _FORWARDS_A_PASS * training.passes * self.forward(mask)


def _weights(layer: nn.Module) -> list[Tensor]:
    if isinstance(layer, nn.Linear | _ConvNd):
        return [layer.weight]
    if not isinstance(layer, nn.MultiheadAttention):
        return []
    found = (layer.in_proj_weight, layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    return [weight for weight in found if weight is not None]  # pyright: ignore[reportUnnecessaryComparison]


@contextmanager
def _watched(model: nn.Module, use: Use) -> Generator[None]:
    """Tell `use` of every multiplication inside the block."""

    def multiplied(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Tensor) -> None:
        if isinstance(layer, _ConvTransposeNd):
            inputs = args[0] if args else kwargs["input"]
            use(layer.weight, inputs.numel() / layer.in_channels, slice(None))
        else:
            wide = layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
            use(layer.weight, outputs.numel() / wide, slice(None))

    def attended(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("query", "key", "value")
        given = dict(zip(names, args, strict=False)) | kwargs
        positions = [given[name].numel() / given[name].shape[-1] for name in names]
        together, size = layer.in_proj_weight, layer.embed_dim
        for part, (name, times) in enumerate(zip("qkv", positions, strict=True)):
            apart = getattr(layer, f"{name}_proj_weight")
            use(apart if together is None else together, times, _rows(part, size) if apart is None else slice(None))
        # torch multiplies by it without calling the layer that holds it.
        use(layer.out_proj.weight, positions[0], slice(None))

    handles: list[Any] = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear | _ConvNd):
            handles.append(layer.register_forward_hook(multiplied, with_kwargs=True))
        elif isinstance(layer, nn.MultiheadAttention):
            handles.append(layer.register_forward_pre_hook(attended, with_kwargs=True))
    # The fast path of transformers in eval mode runs past the layers it is made of.
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
    """Run the model on the first batch of one; the number of examples in it."""
    device = next(model.parameters()).device
    with isolated(Seed(0).at("operations"), device):
        inputs, targets = batch_to(next(iter(task.train.in_order(1))), device)
        task.forward(model, to_memory_format_of(model, inputs))
    return len(targets)
