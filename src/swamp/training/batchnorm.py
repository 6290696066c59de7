"""Re-estimation of the running statistics of normalisation layers, needed for averaged weights."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.parametrize import ParametrizationList

from swamp.batches import Batch, batch_to
from swamp.model_copy import copied_model
from swamp.training.data import Data, DatasetData, TensorData, mixed_batches
from swamp.training.memory_format import to_memory_format_of
from swamp.training.rng import Seed, isolated
from swamp.training.task import Forward, call_model, in_mode
from swamp.training.tokens import TokenData

_POWER_ITERATIONS = 50

NormLayer = _BatchNorm | _InstanceNorm


def batchnorm_layers(model: nn.Module) -> list[NormLayer]:
    """The batch and instance normalisation layers whose running statistics training changes.

    Not among them: layers without running statistics, layers with momentum 0, and layers that the model keeps in eval
    mode in training, by a `train()` of its own.
    """
    norms: list[NormLayer] = [module for module in model.modules() if isinstance(module, NormLayer)]
    tracking = [layer for layer in norms if layer.running_mean is not None and layer.momentum != 0]
    if not tracking:
        return []
    with in_mode(model, training=True):
        return [layer for layer in tracking if layer.training]


def spectral_norms(model: nn.Module) -> list[ParametrizationList]:
    """Weights with a spectral norm, which is estimated by power iteration in train mode."""
    lists = [module for module in model.modules() if isinstance(module, ParametrizationList)]
    return [one for one in lists if any(hasattr(part, "n_power_iterations") for part in one)]


def reset_statistics(model: nn.Module) -> None:
    """Reset the running statistics that training changes to their initial values (mean 0, variance 1)."""
    for layer in batchnorm_layers(model):
        layer.reset_running_stats()


def with_reestimated_batchnorm(
    model: nn.Module, data: Data, *, forward: Forward = call_model, batch_size: int = 256, examples: int | None = None
) -> nn.Module:
    """`reestimate_batchnorm` on a copy of `model`. Returns `model` itself if training changes no statistics."""
    if not (batchnorm_layers(model) or spectral_norms(model)):
        return model
    fresh = copied_model(model)
    reestimate_batchnorm(fresh, data, forward=forward, batch_size=batch_size, examples=examples)
    return fresh


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, data: Data, *, forward: Forward = call_model, batch_size: int = 256, examples: int | None = None
) -> None:
    """Re-estimate running statistics of batch and instance normalisation in place: the mean over batches.

    The statistics are reset, then one pass in a fixed random order follows, without augmentation and dropout: batches
    of sorted data would each show one class, and too small a variance. An incomplete last batch is left out. Batches of
    the user's own, which may differ in size, count by their examples. Statistics that training does not change are left
    as they are: see `batchnorm_layers`. The singular vectors of spectral_norm, whose mean has another norm than 1, are
    found again by power iteration.

    Args:
        model: The model; its modes and momenta are restored.
        data: Usually the training data.
        forward: (model, inputs) -> outputs, as in Task.
        batch_size: Examples per batch.
        examples: Largest number of examples to read, a fixed random subset (None: all), see `mixed_batches`.

    Examples:
        >>> import torch
        >>> from swamp.training import TensorData
        >>> model = torch.nn.BatchNorm1d(1)
        >>> reestimate_batchnorm(model, TensorData(torch.tensor([[1.0], [3.0]]), torch.zeros(2)))
        >>> model.running_mean, model.running_var
        (tensor([2.]), tensor([2.]))
    """
    for weight in spectral_norms(model):
        with in_mode(weight, training=True):
            for _ in range(_POWER_ITERATIONS):
                weight()
    layers = batchnorm_layers(model)
    if not layers:
        return
    device = next(layers[0].buffers()).device
    size = _Size()
    with (
        in_mode(model, training=False),
        _cumulative(layers, size, weighted=_own_sizes(data)),
        isolated(Seed(0).at("batchnorm"), device),
    ):
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        for batch in statistics_batches(data, batch_size, examples):
            inputs, targets = batch_to(batch, device)
            size.examples = len(targets)
            forward(model, to_memory_format_of(model, inputs))


def statistics_batches(data: Data, batch_size: int, examples: int | None) -> Iterator[Batch]:
    """The batches of `reestimate_batchnorm`: `mixed_batches` without an incomplete last one."""
    first_size = 0
    for batch, following in pairwise(chain(mixed_batches(data, batch_size, examples), [None])):
        assert batch is not None
        first_size = first_size or len(batch[1])
        if len(batch[1]) >= first_size or (_own_sizes(data) and following is not None):
            yield batch


def _own_sizes(data: Data) -> bool:
    """Whether the batches are the user's own, which may differ in size."""
    return not isinstance(data, TensorData | DatasetData | TokenData)


@dataclass
class _Size:
    """Examples of the batch that is computed."""

    examples: int = 0


@contextmanager
def _cumulative(layers: list[NormLayer], size: _Size, *, weighted: bool) -> Generator[None]:
    """Inside the block running statistics are the mean over the calls of each layer, `weighted` by their examples."""
    momenta = [layer.momentum for layer in layers]
    # Without momentum BatchNorm computes the uniform mean; InstanceNorm would not change.
    counted = [layer for layer in layers if weighted or isinstance(layer, _InstanceNorm)]
    handles = [layer.register_forward_pre_hook(_counting(size)) for layer in counted]
    try:
        for layer in layers:
            layer.momentum = None
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _counting(size: _Size) -> Callable[[Any, Any], None]:
    seen = 0

    def before(layer: Any, args: Any) -> None:
        nonlocal seen
        del args
        seen += size.examples
        layer.momentum = size.examples / seen

    return before


@contextmanager
def frozen_statistics(model: nn.Module) -> Generator[None]:
    """Inside the block the running statistics do not change; batches are normalised as before."""
    # A layer in eval mode does not change its statistics, and needs them for normalisation.
    layers = [m for m in model.modules() if isinstance(m, NormLayer) and m.training and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    saved: list[tuple[Tensor | None, ...]] = [
        (layer.running_mean, layer.running_var, layer.num_batches_tracked) for layer in layers
    ]
    for layer in layers:
        # Without statistics, train mode normalises by those of the batch and writes nothing.
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    try:
        yield
    finally:
        for layer, (mean, var, count) in zip(layers, saved, strict=True):
            layer.running_mean, layer.running_var, layer.num_batches_tracked = mean, var, count
            layer.track_running_stats = True
