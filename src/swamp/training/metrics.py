"""Metrics of classification, regression and language models, and how the outputs of several models are combined."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from swamp.errors import SwampError

Metric = Callable[[Tensor, Tensor], float]
"""(outputs, targets) of a whole data set -> number."""
Combine = Callable[[Sequence[Tensor]], Tensor]
"""Outputs of several models on the same examples -> outputs of their ensemble."""


def comparable(error: float) -> float:
    """The error, infinity for NaN: every comparison with NaN is false, so that it would pass for the lowest."""
    return math.inf if math.isnan(error) else error


def highest(values: Sequence[float]) -> float:
    """The largest of `values`; NaN if any is NaN, which Python's max may ignore."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def _by_class(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (n, classes) and class numbers (n,), from those of F.cross_entropy; ignored targets (-100) left out."""
    if targets.shape == outputs.shape:  # probabilities, such as one-hot targets
        targets = targets.argmax(1)
    if outputs.dim() > 2:
        outputs, targets = outputs.movedim(1, -1).flatten(0, -2), targets.flatten()
    if outputs.dim() != 2 or targets.shape != outputs.shape[:1]:
        raise SwampError(
            f"class numbers (batch, ...) or probabilities of the shape of the outputs {tuple(outputs.shape)} were "
            f"expected as targets, got {tuple(targets.shape)}."
        )
    active = targets != -100
    return (outputs, targets) if bool(active.all()) else (outputs[active], targets[active])


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Fraction of targets with the largest output at the target class, in [0, 1].

    Args:
        outputs: Logits (batch, classes, ...).
        targets: Class numbers (batch, ...), -100: ignored; or probabilities (batch, classes, ...).
    """
    outputs, targets = _by_class(outputs, targets)
    return float((outputs.argmax(-1) == targets).double().mean())


def nll(outputs: Tensor, targets: Tensor) -> float:
    """Mean negative log-likelihood in nats; outputs are logits or log-probabilities."""
    return float(F.cross_entropy(outputs.double(), targets))


def ece(outputs: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Expected calibration error over equal-width confidence bins (Guo et al. 2017), in [0, 1]."""
    outputs, targets = _by_class(outputs, targets)
    confidence, predicted = outputs.double().softmax(-1).max(-1)
    gap = (predicted == targets).double() - confidence
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64, device=outputs.device).index_add_(0, bin_of, gap)
    return float(sums.abs().sum() / len(targets))


def mean_probability(outputs: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean class probabilities of several models, from their logits (batch, classes, ...)."""
    total = outputs[0].double().softmax(1)
    for logits in outputs[1:]:
        total = total + logits.double().softmax(1)
    found = (total / len(outputs)).log()
    if not bool(found.isinf().any()):
        return found
    # Probabilities below 1e-323 round to zero, and their logarithm to infinity.
    return torch.stack([logits.double().log_softmax(1) for logits in outputs]).logsumexp(0) - math.log(len(outputs))


CLASSIFICATION: Mapping[str, Metric] = {"accuracy": accuracy, "nll": nll, "ece": ece}


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
    """Root of the mean squared error, in the unit of the targets. Raises SwampError if the shapes differ."""
    if outputs.shape != targets.shape:
        raise SwampError(
            f"a regression needs targets of the shape of the outputs {tuple(outputs.shape)}, got "
            f"{tuple(targets.shape)}: the difference of the two would be that of every output and every target. "
            "Reshape one of them, such as targets[:, None]."
        )
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
    """exp of the mean negative log probability per token; infinity above the largest number."""
    del targets
    try:
        return math.exp(float(-outputs.double().mean()))
    except OverflowError:
        return math.inf


def wrong_tokens(outputs: Tensor, targets: Tensor) -> float:
    """Expected fraction of wrong tokens if each is sampled from the model's distribution."""
    del targets
    return 1 - float(outputs.double().exp().mean())


def mean_likelihood(outputs: Sequence[Tensor]) -> Tensor:
    """Log of the mean probability of each token over several models."""
    return torch.stack([one.double() for one in outputs]).logsumexp(0) - math.log(len(outputs))


LANGUAGE: Mapping[str, Metric] = {"bits_per_byte": bits_per_byte, "perplexity": perplexity}


def binary_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Fraction of labels whose logit has the sign of the target (0 or 1), over all outputs, in [0, 1]."""
    return float(((outputs > 0) == (targets > 0.5)).double().mean())


def binary_nll(outputs: Tensor, targets: Tensor) -> float:
    """Mean negative log-likelihood of independent labels in nats, from their logits."""
    return float(F.binary_cross_entropy_with_logits(outputs.double(), targets.double()))


def mean_label_probability(outputs: Sequence[Tensor]) -> Tensor:
    """Logits of the mean probability of each label over several models, from their logits."""
    logits = torch.stack([one.double() for one in outputs])
    found = logits.sigmoid().mean(0).logit()
    # Of models that are sure, the mean probability rounds to 1, and its logit to infinity.
    exact = F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
    return torch.where(found.isinf(), exact, found)


BINARY: Mapping[str, Metric] = {"accuracy": binary_accuracy, "nll": binary_nll}
LEAST_SQUARES: Mapping[str, Metric] = {"rmse": rmse, "unexplained_variance": unexplained_variance}


class DefaultMetrics(NamedTuple):
    """How the outputs of a model are measured and combined."""

    metrics: Mapping[str, Metric]
    error: Metric | None
    """In [0, 1]; None: 1 - accuracy."""
    combine: Combine


def ignored_target(loss: Any) -> int:
    """The class number that a cross-entropy leaves out: `ignore_index` of the loss, or -100."""
    while isinstance(loss, functools.partial):
        found = cast("functools.partial[Any]", loss)
        if "ignore_index" in found.keywords:
            return found.keywords["ignore_index"]
        loss = found.func
    return getattr(loss, "ignore_index", -100)


def _ignoring(metric: Metric, ignored: int, outputs: Tensor, targets: Tensor) -> float:
    return metric(outputs, targets if targets.is_floating_point() else targets.masked_fill(targets == ignored, -100))


def default_metrics(loss: Any) -> DefaultMetrics | None:
    """The default metrics for a loss: of torch.nn.functional, a module of torch.nn, or a functools.partial of one.

    Returns:
        Classification for cross-entropy, independent labels for binary cross-entropy with logits, and regression for
        squared, absolute and Huber errors; None for any other loss.
    """
    ignored = ignored_target(loss)
    while isinstance(loss, functools.partial):
        loss = cast("functools.partial[Any]", loss).func
    name = loss.__name__ if hasattr(loss, "__name__") else type(loss).__name__
    if not str(getattr(loss, "__module__", type(loss).__module__)).startswith("torch."):
        return None
    if name in ("cross_entropy", "CrossEntropyLoss", "nll_loss", "NLLLoss"):
        metrics = {name: functools.partial(_ignoring, metric, ignored) for name, metric in CLASSIFICATION.items()}
        return DefaultMetrics(CLASSIFICATION if ignored == -100 else metrics, None, mean_probability)
    if name in ("binary_cross_entropy_with_logits", "BCEWithLogitsLoss"):
        return DefaultMetrics(BINARY, None, mean_label_probability)
    # MSELoss and mse_loss -> mse
    if name.lower().replace("_", "").removesuffix("loss") in ("mse", "l1", "smoothl1", "huber"):
        return DefaultMetrics(LEAST_SQUARES, unexplained_variance, mean_output)
    return None
