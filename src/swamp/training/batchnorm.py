"""Re-estimation of batch-normalisation statistics, needed for averaged weights."""

from collections.abc import Generator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from swamp.model_copy import copied_model
from swamp.training.data import Data, batch_to
from swamp.training.memory_format import to_memory_format_of
from swamp.training.task import Forward, call_model, evaluating


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The batch-normalisation layers of `model` that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def with_reestimated_batchnorm(
    model: nn.Module, data: Data, *, forward: Forward = call_model, batch_size: int = 256, batches: int | None = None
) -> nn.Module:
    """`reestimate_batchnorm` on a copy of `model`. Returns `model` itself if it has no running statistics."""
    if not batchnorm_layers(model):
        return model
    fresh = copied_model(model)
    reestimate_batchnorm(fresh, data, forward=forward, batch_size=batch_size, batches=batches)
    return fresh


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, data: Data, *, forward: Forward = call_model, batch_size: int = 256, batches: int | None = None
) -> None:
    """Re-estimate the running statistics of batch normalisation in place: the uniform mean over batches of `data`.

    The statistics are reset, then one pass in fixed order follows, without augmentation and dropout. An incomplete last
    batch is left out, because it would count as much as a full one. A model without running statistics is unchanged.

    Args:
        model: The model; its modes and momenta are restored.
        data: Usually the training data.
        forward: (model, inputs) -> outputs, as in Task.
        batch_size: Examples per batch.
        batches: Largest number of batches to read (None: all).

    Example:
        >>> import torch
        >>> from swamp.training import TensorData
        >>> model = torch.nn.BatchNorm1d(1)
        >>> reestimate_batchnorm(model, TensorData(torch.tensor([[1.0], [3.0]]), torch.zeros(2)))
        >>> model.running_mean, model.running_var
        (tensor([2.]), tensor([2.]))
    """
    layers = batchnorm_layers(model)
    if not layers:
        return
    device = next(model.parameters()).device
    momenta = [layer.momentum for layer in layers]
    with evaluating(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch then computes the cumulative mean
            layer.train()
        first_size = 0
        for batch in islice(data.in_order(batch_size), batches):
            inputs, targets = batch_to(batch, device)
            first_size = first_size or len(targets)
            if len(targets) >= first_size:
                forward(model, to_memory_format_of(model, inputs))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


@contextmanager
def frozen_statistics(model: nn.Module) -> Generator[None]:
    """Inside the block the running statistics do not change; batches are normalised as before."""
    # A layer in eval mode does not change its statistics, and needs them for normalisation.
    layers = [layer for layer in batchnorm_layers(model) if layer.training]
    for layer in layers:
        layer.track_running_stats = False
    saved = [(layer.running_mean, layer.running_var, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        # Without statistics, train mode normalises by those of the batch and writes nothing.
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    try:
        yield
    finally:
        for layer, (mean, var, count) in zip(layers, saved, strict=True):
            layer.running_mean, layer.running_var, layer.num_batches_tracked = mean, var, count
            layer.track_running_stats = True


def reset_statistics(model: nn.Module) -> None:
    """Reset the running statistics of batch normalisation to their initial values (mean 0, variance 1)."""
    for layer in batchnorm_layers(model):
        layer.reset_running_stats()
