"""How a task of the user's own functions is evaluated: any model, any metric."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp.errors import SwampError

BatchLoss = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> scalar tensor, the mean over the batch."""
Evaluate = Callable[[nn.Module], Mapping[str, Any]]
"""model in eval mode -> name of each metric and its value, a number or a tensor of one number."""
ErrorOf = Callable[[Mapping[str, float]], float]
"""Metrics -> error; lower is better."""

_LOWER = re.compile(
    "loss|error|nll|mse|mae|mape|perplexity|bits|brier|distance|residual|divergence|unexplained"
    # Whole words, because they are parts of answer, cancer, confidence and piece.
    r"|\b(wer|cer|fid|ece)\b"
)


@dataclass(frozen=True)
class OwnEvaluation:
    """The functions that evaluate a task of the user's own, and which metric decides.

    Args:
        evaluate: Measures a model on test data, for the record.
        validate: Measures it on validation data, for choices and barriers (None: barriers use `evaluate`).
        error: The error: the name of a metric, or a function of all metrics (None: from the first metric, 1 - value
            where higher is better).
        higher_is_better: Of the first metric (None: judged by its name, see `lower_is_better`).
        tested: Whether `evaluate` may be called: see Task.without_test.
    """

    evaluate: Evaluate
    validate: Evaluate | None = None
    error: str | ErrorOf | None = None
    higher_is_better: bool | None = None
    tested: bool = True

    def metrics(self, model: nn.Module, *, validation: bool) -> dict[str, float]:
        """Metrics of `model`, which is in eval mode; its gradients are removed.

        Raises:
            SwampError: The function returned something other than names and numbers.
        """
        function = self.validate if validation and self.validate is not None else self.evaluate
        # Some evaluations differentiate, such as those of physics-informed networks.
        with torch.enable_grad():
            found = function(model)
        for parameter in model.parameters():
            parameter.grad = None
        return numbers_of(found, getattr(function, "__name__", "evaluate"))

    def error_of(self, metrics: Mapping[str, float]) -> float:
        """The error of these metrics, in the unit of the task."""
        if callable(self.error):
            return float(self.error(metrics))
        if self.error is not None:
            if self.error not in metrics:
                raise SwampError(f"error={self.error!r} is not among the metrics {', '.join(metrics)}.")
            return metrics[self.error]
        name, value = next(iter(metrics.items()))
        return 1 - value if self.higher(name) else value

    def higher(self, name: str) -> bool:
        """Whether a larger value of the first metric, called `name`, is better."""
        return not lower_is_better(name) if self.higher_is_better is None else self.higher_is_better


def lower_is_better(metric: str) -> bool:
    """Whether a lower value of a metric is better, judged by its name: a loss, an error, a distance and the like."""
    return _LOWER.search(metric.lower().replace("_", " ")) is not None


def numbers_of(found: Any, what: str) -> dict[str, float]:
    """Name -> number of what an evaluation returned. Raises SwampError for anything else."""
    if not isinstance(found, Mapping) or not found:
        raise SwampError(
            f"{what}(model) must return a dict of metrics, such as {{'accuracy': 0.9}}; it returned {found!r:.80}."
        )
    values: dict[str, float] = {}
    for name, value in cast("Mapping[Any, Any]", found).items():
        number = value.numel() == 1 if isinstance(value, Tensor) else hasattr(value, "__float__")
        if not isinstance(name, str) or not number:
            raise SwampError(
                f"{what}(model) must return names and numbers; it returned {type(value).__name__} for {name!r}."
            )
        values[name] = float(value.detach() if isinstance(value, Tensor) else value)
    return values


class ReturnedLoss:
    """The forward pass of such a task: its loss of a whole batch. The loss function then returns it unchanged."""

    def __init__(self, loss: BatchLoss) -> None:
        self.loss = loss

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of `batch`. Some losses differentiate, also where the caller needs no gradient."""
        with torch.enable_grad():
            return self.loss(model, batch)


def returned(outputs: Tensor, targets: Any) -> Tensor:
    """The loss function of such a task: its forward pass has computed the loss."""
    del targets
    return outputs
