"""What is learned of text: a class, a number, or the next token; what that costs, and how it is measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.training.task import Metric, call_model


def number(model: nn.Module, inputs: Any) -> Tensor:
    """The one output of a regression (batch,)."""
    return call_model(model, inputs).float().squeeze(-1)


def pearson(outputs: Tensor, targets: Tensor) -> float:
    """Correlation in [-1, 1]; 0 where one of them never varies."""
    one, other = (values.double() - values.double().mean() for values in (outputs, targets))
    scale = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / scale if scale else 0.0


def spearman(outputs: Tensor, targets: Tensor) -> float:
    """Correlation of the ranks; equal values share theirs."""
    return pearson(_ranks(outputs), _ranks(targets))


def _ranks(values: Tensor) -> Tensor:
    found: Any = cast(Any, values).unique(return_inverse=True, return_counts=True)
    _, place, counts = cast("tuple[Tensor, Tensor, Tensor]", found)
    # Equal values share the mean of the ranks they would have.
    return (counts.cumsum(0).double() - (counts - 1) / 2)[place]


def rmse(outputs: Tensor, targets: Tensor) -> float:
    """Root of the mean squared error, in the unit of the targets."""
    return math.sqrt(F.mse_loss(outputs.double(), targets.double()))


def unexplained(outputs: Tensor, targets: Tensor) -> float:
    """Share of the targets' variance that is not explained (1 - R squared), at most 1."""
    variance = float(targets.double().var(correction=0))
    return min(1.0, rmse(outputs, targets) ** 2 / variance) if variance else 1.0


def mean_output(outputs: Sequence[Tensor]) -> Tensor:
    """The mean of what several regressions say."""
    return torch.stack([one.double() for one in outputs]).mean(0)


REGRESSION: Mapping[str, Metric] = {"pearson": pearson, "spearman": spearman, "rmse": rmse}


def next_tokens(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Log probability (nats) of each token after the first, given those before it (batch, length - 1).

    So little is kept of each token, as all logits of a large vocabulary would not fit in memory.
    """
    ids = inputs["input_ids"]
    logits = call_model(model, {"input_ids": ids[:, :-1]}).float()
    return -F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def surprise(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of a language model: mean negative log probability of a token."""
    del targets
    return -outputs.mean()


def bits_per_byte(outputs: Tensor, targets: Tensor) -> float:
    """Bits that each byte of the text would take to be written down; targets: bytes of each token."""
    return float(-outputs.double().sum() / targets.double().sum()) / math.log(2)


def perplexity(outputs: Tensor, targets: Tensor) -> float:
    """exp of the mean negative log probability of a token."""
    del targets
    return math.exp(float(-outputs.double().mean()))


def wrong_guesses(outputs: Tensor, targets: Tensor) -> float:
    """Share of wrong tokens, were each drawn with the probabilities that the model gives them."""
    del targets
    return 1 - float(outputs.double().exp().mean())


def mean_likelihood(outputs: Sequence[Tensor]) -> Tensor:
    """Log of the mean probability that several models give each token."""
    return torch.stack([one.double() for one in outputs]).logsumexp(0) - math.log(len(outputs))


LANGUAGE: Mapping[str, Metric] = {"bits_per_byte": bits_per_byte, "perplexity": perplexity}
