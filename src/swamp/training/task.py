"""Task: the data, loss and metrics of one learning problem; evaluation and prediction."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.errors import SwampError
from swamp.training.data import Data, TensorData, batch_to
from swamp.training.memory_format import to_memory_format_of
from swamp.training.sources import as_data

Loss = Callable[[Tensor, Any], Tensor]
"""(outputs, targets) -> scalar tensor, the mean over the batch."""
Metric = Callable[[Tensor, Tensor], float]
"""(outputs, targets) of a whole data set -> number."""
Forward = Callable[[nn.Module, Any], Tensor]
"""(model, inputs) -> outputs."""
Combine = Callable[[Sequence[Tensor]], Tensor]
"""Outputs of several models on the same examples -> outputs of their ensemble."""


def call_model(model: nn.Module, inputs: Any) -> Tensor:
    """`model(inputs)`, or `model(**inputs)` for a mapping; the attribute `logits` of the result if it has one."""
    outputs = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    return getattr(outputs, "logits", outputs)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Fraction of examples for which the largest output is at the target class, in [0, 1]."""
    return float((outputs.argmax(-1) == targets).double().mean())


def nll(outputs: Tensor, targets: Tensor) -> float:
    """Mean negative log-likelihood in nats; outputs are logits or log-probabilities."""
    return float(F.cross_entropy(outputs.double(), targets))


def ece(outputs: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Expected calibration error over equal-width confidence bins (Guo et al. 2017), in [0, 1]."""
    confidence, predicted = outputs.double().softmax(-1).max(-1)
    gap = (predicted == targets).double() - confidence
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64, device=outputs.device).index_add_(0, bin_of, gap)
    return float(sums.abs().sum() / len(targets))


def mean_probability(outputs: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean class probabilities of several models, from their logits (..., classes)."""
    total = outputs[0].double().softmax(-1)
    for logits in outputs[1:]:
        total = total + logits.double().softmax(-1)
    return (total / len(outputs)).log()


CLASSIFICATION: Mapping[str, Metric] = {"accuracy": accuracy, "nll": nll, "ece": ece}


@dataclass(frozen=True)
class Task:
    """Data, loss and metrics of a supervised task, for any model.

    `Task.of` builds one from tensors, DataLoaders or Datasets. Summaries show the first metric. Barriers and the
    choice of the best particle use the error: 1 - `accuracy`, or the task's own `error`.

    Args:
        train: Training data.
        test: Test data, used for reporting only.
        validation: Data for choices such as the best particle (default: the training data).
        loss: (outputs, targets) -> scalar tensor, the mean over the batch.
        metrics: Name -> (outputs, targets) of the whole data set -> number. Default: accuracy, nll, ece.
        forward: (model, inputs) -> outputs.
        error: (outputs, targets) -> number in [0, 1]; needed if the metrics do not contain `accuracy`.
        combine: Outputs of several models -> outputs of their ensemble. Default: logarithm of the mean probabilities.

    Example:
        >>> import torch
        >>> inputs, targets = torch.randn(40, 8), torch.randint(0, 3, (40,))
        >>> Task.of(train=(inputs[:30], targets[:30]), test=(inputs[30:], targets[30:]))
        Task(train 30, test 10 examples; metrics accuracy, nll, ece; loss cross_entropy)
    """

    train: Data
    test: Data
    validation: Data | None = None
    loss: Loss = F.cross_entropy
    metrics: Mapping[str, Metric] = field(default_factory=lambda: dict(CLASSIFICATION))
    forward: Forward = call_model
    error: Metric | None = None
    combine: Combine = mean_probability

    @classmethod
    def of(cls, train: Any, test: Any, validation: Any = None, **others: Any) -> "Task":
        """A task from tensors, DataLoaders, Datasets or iterables of batches.

        Args:
            train: Training data: anything that `as_data` accepts.
            test: Test data, likewise.
            validation: Validation data, likewise (None: choices are made on the training data).
            others: Other fields of `Task`, such as `loss` and `metrics`.

        Raises:
            SwampError: A source is not supported, or it is empty.
        """
        held_out = None if validation is None else as_data(validation)
        return cls(as_data(train), as_data(test), held_out, **others)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {size:,}" for split, size in self._sizes().items())
        return f"Task({sizes} examples; metrics {', '.join(self.metrics)}; loss {_name(self.loss)})"

    def _repr_html_(self) -> str:
        """A table of the splits, for notebooks."""
        rows = "".join(f"<tr><td>{split}</td><td>{size:,}</td></tr>" for split, size in self._sizes().items())
        return f"<p>{escape(repr(self))}</p><table><tr><th>split</th><th>examples</th></tr>{rows}</table>"

    def _sizes(self) -> dict[str, int]:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: len(data) for split, data in splits.items() if data is not None}

    @property
    def held_out(self) -> Data:
        """The data for choices: the validation data, or the training data if there is none; never the test data."""
        return self.train if self.validation is None else self.validation

    def to(self, device: torch.device) -> "Task":
        """The same task with all data in memory on `device`."""
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), validation=validation)

    def error_of(self, outputs: Tensor, targets: Tensor) -> float:
        """Error in [0, 1]: `error` of the task, or 1 - accuracy."""
        if self.error is not None:
            return self.error(outputs, targets)
        if "accuracy" not in self.metrics:
            raise SwampError("a task without an 'accuracy' metric must name its own error: Task(error=...).")
        return 1 - self.metrics["accuracy"](outputs, targets)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode inside the block; then the mode of every module is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def predict(
    model: nn.Module, task: Task, data: Data, *, examples: int | None = None, batch_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The model's outputs and the targets of the examples of `data`, in order, in eval mode.

    Args:
        model: Runs on the device it is on; the train or eval mode of its modules is restored.
        task: Its `forward` calls the model.
        data: One split of a task, such as `task.test`.
        examples: Number of examples, from the first (default: all).
        batch_size: Examples in each call of the model (default: a size that suits the model's device).

    Returns:
        Outputs (examples, ...) and targets (examples, ...), on the model's device.

    Example:
        >>> import torch
        >>> data = torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 0])
        >>> task = Task.of(train=data, test=data)
        >>> outputs, targets = predict(torch.nn.Linear(4, 2), task, task.test)
        >>> outputs.shape, targets.tolist()
        (torch.Size([5, 2]), [0, 1, 0, 1, 0])
    """
    device = next(model.parameters()).device
    batch_size = batch_size or _fast_batch(data, device)
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    seen = 0
    with evaluating(model):
        for batch in data.in_order(batch_size if examples is None else min(batch_size, examples)):
            inputs, target = batch_to(batch, device)
            outputs.append(task.forward(model, to_memory_format_of(model, inputs)))
            targets.append(target)
            seen += len(target)
            if examples is not None and seen >= examples:
                break
    return torch.cat(outputs)[:examples], torch.cat(targets)[:examples]


def _fast_batch(data: Data, device: torch.device) -> int:
    """Batch size for inference. On a CPU 1,024 images exceed the caches: 1.5 times slower than 256."""
    vectors = isinstance(data, TensorData) and isinstance(data.inputs, Tensor) and data.inputs.dim() == 2
    return 256 if device.type == "cpu" and not vectors else 1024


def evaluate(model: nn.Module, task: Task, data: Data, *, examples: int | None = None) -> dict[str, float]:
    """Every metric of the task on `data`, in eval mode.

    Args:
        model: The model to evaluate.
        task: Its `metrics` and its `forward` are used.
        data: One split of a task, such as `task.test`.
        examples: Number of examples, from the first (default: all).

    Returns:
        Metric name -> value.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)
        >>> data = torch.tensor([[1.0, 0], [0, 1], [0, 2], [3, 0]]), torch.tensor([0, 1, 1, 1])
        >>> evaluate(model, Task.of(train=data, test=data), as_data(data))["accuracy"]
        0.75
    """
    outputs, targets = predict(model, task, data, examples=examples)
    return {name: metric(outputs, targets) for name, metric in task.metrics.items()}
