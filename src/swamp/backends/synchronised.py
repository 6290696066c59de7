"""Batch normalisation over the rows of all processes that train one model together."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Synchronised(TorchFunctionMode):
    """Inside the block F.batch_norm in training mode takes mean and variance over the rows of every process of `group`.

    A mode and no other layer in the model's place (torch has SyncBatchNorm, for GPUs only): a user's module stays as
    it is. Running statistics move as torch moves them for the whole batch, with the unbiased variance. Other layers
    that mix the rows of a batch are not known here and see their own process's rows alone.
    """

    def __init__(self, group: Any) -> None:
        super().__init__()
        self.group = group

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **given)
        return self._batch_norm(func, *args, **given)

    def _batch_norm(
        self,
        func: Any,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return func(input, running_mean, running_var, weight, bias, False, momentum, eps)
        normal, mean, variance, count = _normalised(input, eps, self.group)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                unbiased = variance * (count / (count - 1).clamp(min=1))
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        shape = [1, -1] + [1] * (input.dim() - 2)
        if weight is not None:
            normal = normal * weight.view(shape)
        if bias is not None:
            normal = normal + bias.view(shape)
        return normal.to(input.dtype)


def _normalised(input: Tensor, eps: float, group: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    apply = cast("Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]", _Normalise.apply)  # pyright: ignore[reportUnknownMemberType]
    return apply(input, eps, group)


class _Normalise(torch.autograd.Function):
    """(input - mean) / sqrt(variance + eps) of each channel (dimension 1), and the statistics; float32 or better."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, eps: float, group: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = input.double() if input.dtype == torch.float64 else input.float()
        others = [dim for dim in range(wide.dim()) if dim != 1]
        shape = [1, -1] + [1] * (wide.dim() - 2)
        channels = wide.shape[1]
        rows = wide.numel() // channels
        # Sums of squares about each process's own mean, joined by Chan's formula: squares about 0 would cancel.
        own: Tensor = wide.mean(others) if rows else wide.new_zeros(channels)
        squares = (wide - own.view(shape)).square().sum(others)
        told = torch.cat([own, squares, own.new_tensor([float(rows)])])
        heard = [torch.empty_like(told) for _ in range(dist.get_world_size(group))]
        dist.all_gather(heard, told, group=group)  # pyright: ignore[reportUnknownMemberType]
        table = torch.stack(heard)
        all_means, all_squares, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
        count = counts.sum()
        mean = (all_means * counts).sum(0) / count
        variance = (all_squares.sum(0) + (counts * (all_means - mean).square()).sum(0)) / count
        scale = (variance + eps).rsqrt()
        normal = (wide - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal, scale, count)
        ctx.group, ctx.others, ctx.shape, ctx.type = group, others, shape, input.dtype
        ctx.mark_non_differentiable(mean, variance, count)
        return normal, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (gradient, *_), (normal, scale, count) = gradients, ctx.saved_tensors
        sums = torch.cat([gradient.sum(ctx.others), (gradient * normal).sum(ctx.others)])
        dist.all_reduce(sums, group=ctx.group)  # pyright: ignore[reportUnknownMemberType]
        along, across = (sums / count).chunk(2)
        back = gradient - along.view(ctx.shape) - normal * across.view(ctx.shape)
        return (back * scale.view(ctx.shape)).to(ctx.type), None, None
