"""Metrics of regressions and language models, and how the outputs of several models are combined."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from swamp.training.task import Metric


def pearson(outputs: Tensor, targets: Tensor, *, constant: float = 0.0) -> float:
    """Pearson correlation of two vectors (n,), in [-1, 1]; `constant` if one of them is constant."""
    first, second = (values.double() - values.double().mean() for values in (outputs, targets))
    scale = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / scale if scale else constant


def spearman(outputs: Tensor, targets: Tensor, *, constant: float = 0.0) -> float:
    """Spearman's rank correlation in [-1, 1]; equal values have the mean of their ranks.

    Args:
        outputs: Vector (n,).
        targets: Vector (n,).
        constant: The result if a vector is constant, or has fewer than two values: the correlation is not defined.
    """
    return pearson(_ranks(outputs), _ranks(targets), constant=constant)


def _ranks(values: Tensor) -> Tensor:
    found: Any = cast(Any, values).unique(return_inverse=True, return_counts=True)
    _, place, counts = cast("tuple[Tensor, Tensor, Tensor]", found)
    return (counts.cumsum(0).double() - (counts - 1) / 2)[place]


def rmse(outputs: Tensor, targets: Tensor) -> float:
    """Root of the mean squared error, in the unit of the targets."""
    return math.sqrt(F.mse_loss(outputs.double(), targets.double()))


def unexplained_variance(outputs: Tensor, targets: Tensor) -> float:
    """Fraction of variance unexplained (1 - R squared), at most 1."""
    variance = float(targets.double().var(correction=0))
    return min(1.0, rmse(outputs, targets) ** 2 / variance) if variance else 1.0


def mean_output(outputs: Sequence[Tensor]) -> Tensor:
    """The mean prediction of several regressions."""
    return torch.stack([one.double() for one in outputs]).mean(0)


REGRESSION: Mapping[str, Metric] = {"pearson": pearson, "spearman": spearman, "rmse": rmse}


def token_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of a language model: mean negative log probability per token."""
    del targets
    return -outputs.mean()


def bits_per_byte(outputs: Tensor, targets: Tensor) -> float:
    """Bits per byte of text; targets: number of bytes of each token."""
    return float(-outputs.double().sum() / targets.double().sum()) / math.log(2)


def perplexity(outputs: Tensor, targets: Tensor) -> float:
    """exp of the mean negative log probability per token."""
    del targets
    return math.exp(float(-outputs.double().mean()))


def wrong_tokens(outputs: Tensor, targets: Tensor) -> float:
    """Expected fraction of wrong tokens if each is sampled from the model's distribution."""
    del targets
    return 1 - float(outputs.double().exp().mean())


def mean_likelihood(outputs: Sequence[Tensor]) -> Tensor:
    """Log of the mean probability of each token over several models."""
    return torch.stack([one.double() for one in outputs]).logsumexp(0) - math.log(len(outputs))


LANGUAGE: Mapping[str, Metric] = {"bits_per_byte": bits_per_byte, "perplexity": perplexity}
