"""Task: the data, loss and metrics of one learning problem; evaluation and prediction."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.arguments import checked, named_fields
from swamp.batches import batch_to, first_of
from swamp.errors import SwampError
from swamp.training.data import Data, TensorData, sampled
from swamp.training.memory_format import to_memory_format_of
from swamp.training.metrics import CLASSIFICATION, Combine, DefaultMetrics, Metric, default_metrics, mean_probability
from swamp.training.own_evaluation import (
    BatchLoss,
    ErrorOf,
    Evaluate,
    OwnEvaluation,
    ReturnedLoss,
    returned,
)
from swamp.training.rng import Seed, isolated
from swamp.training.sources import as_data, as_opaque_data

Loss = Callable[[Tensor, Any], Tensor]
"""(outputs, targets) -> scalar tensor, the mean over the batch."""
Forward = Callable[[nn.Module, Any], Tensor]
"""(model, inputs) -> outputs."""


def call_model(model: nn.Module, inputs: Any) -> Tensor:
    """The model's output for a batch of inputs.

    Args:
        model: Called as `model(inputs)`; as `model(*inputs)` for a tuple or list, `model(**inputs)` for a mapping.
        inputs: A batch of inputs.

    Returns:
        What the model returns, or its `logits`, where it returns an object or a mapping with logits.
    """
    given: Any = inputs
    if isinstance(inputs, Mapping):
        outputs: Any = model(**given)
    else:
        outputs = model(*given) if isinstance(inputs, tuple | list) else model(given)
    if isinstance(outputs, dict):
        return cast("dict[str, Any]", outputs).get("logits", outputs)
    return getattr(outputs, "logits", outputs)


def _default_combine(outputs: Sequence[Tensor]) -> Tensor:
    return mean_probability(outputs)


_DEFAULT_METRICS: Mapping[str, Metric] = MappingProxyType({})


class Measured(NamedTuple):
    """Metrics of a model on one split, and its error."""

    metrics: dict[str, float]
    error: float
    """In units of `Task.error_scale`; NaN where the task names no error."""


@named_fields
@dataclass(frozen=True)
class Task:
    """Data, loss and evaluation of one learning problem, for any model.

    `Task.of` builds one from inputs and targets: tensors, DataLoaders or Datasets. `Task.custom` builds one from two
    functions, for batches, models and metrics of any form. Summaries show the first metric. Barriers and the choice of
    the best particle use the error: 1 - `accuracy`, or the task's own `error`.

    Args:
        train: Training data.
        test: Test data, used for reporting only (None: `own` measures the model).
        validation: Data for choices such as the best particle (default: the training data).
        loss: (outputs, targets) -> scalar tensor, the mean over the batch.
        metrics: Name -> (outputs, targets) of the whole data set -> number. Default: accuracy, nll and ece; for binary
            cross-entropy with logits accuracy and nll of each label; for squared, absolute and Huber errors rmse and
            the unexplained variance.
        forward: (model, inputs) -> outputs.
        error: (outputs, targets) -> number in [0, 1]; needed if the metrics do not contain `accuracy`.
        combine: Outputs of several models -> outputs of their ensemble. Default: logarithm of the mean probabilities;
            for regressions the mean.
        error_scale: The error that counts as 1. If it is given, the error may be any number from 0 up.
        own: The functions of `Task.custom`.

    Examples:
        >>> import torch
        >>> inputs, targets = torch.randn(40, 8), torch.randint(0, 3, (40,))
        >>> Task.of(train=(inputs[:30], targets[:30]), test=(inputs[30:], targets[30:]))
        Task(train 30, test 10 examples; metrics accuracy, nll, ece; loss cross_entropy)
    """

    train: Data
    test: Data | None
    validation: Data | None = None
    loss: Loss = F.cross_entropy
    metrics: Mapping[str, Metric] = field(default_factory=lambda: _DEFAULT_METRICS)
    forward: Forward = call_model
    error: Metric | None = None
    combine: Combine = _default_combine
    error_scale: float | None = None
    own: OwnEvaluation | None = None

    def __post_init__(self) -> None:
        if self.error_scale is not None and not (math.isfinite(self.error_scale) and self.error_scale > 0):
            raise SwampError(f"error_scale must be a positive number, got {self.error_scale!r}.")
        loss: Any = self.loss
        if isinstance(loss, type):
            raise SwampError(f"the loss is the class {loss.__name__}. Create one: loss={loss.__name__}(...)")
        defaults = default_metrics(self.loss) or DefaultMetrics(CLASSIFICATION, None, mean_probability)
        # The dataclass is frozen; these defaults depend on another field.
        if self.metrics is _DEFAULT_METRICS and self.own is None:
            object.__setattr__(self, "metrics", dict(defaults.metrics))
            object.__setattr__(self, "error", self.error or defaults.error)
        if self.combine is _default_combine:
            object.__setattr__(self, "combine", defaults.combine)

    @classmethod
    @checked
    def of(
        cls, train: Any, test: Any, validation: Any = None, *, steps_per_epoch: int | None = None, **others: Any
    ) -> "Task":
        """A task from tensors, DataLoaders, Datasets or iterables of batches.

        Args:
            train: Training data: anything that `as_data` accepts.
            test: Test data, likewise.
            validation: Validation data, likewise (None: choices are made on the training data).
            steps_per_epoch: Batches in an epoch of a stream (an IterableDataset); needed if it has no length.
            others: Other fields of `Task`, such as `loss` and `metrics`.

        Raises:
            SwampError: A source is not supported, or it is empty.
        """
        held_out = None if validation is None else as_data(validation)
        return cls(as_data(train, steps_per_epoch), as_data(test), held_out, **others)

    @classmethod
    @checked
    def custom(
        cls,
        train: Any,
        loss: BatchLoss,
        evaluate: Evaluate,
        *,
        validate: Evaluate | None = None,
        error: str | ErrorOf | None = None,
        error_scale: float | None = None,
        higher_is_better: bool | None = None,
        steps_per_epoch: int | None = None,
    ) -> "Task":
        """A task from two functions, for batches, models and metrics of any form.

        Methods that combine outputs (ensembles) and scores that need them (grasp, synflow) are not possible with it.

        Args:
            train: Training data: a DataLoader, a Dataset, a list of batches, a tensor, tensors of equal length in a
                tuple, list or dict, an IterableDataset, or a function of a seed (an int) that returns an iterator of
                batches. Batches may be anything: tensors inside are moved to the model's device.
            loss: (model, batch) -> scalar tensor, the mean over the batch; the model is in train mode.
            evaluate: model in eval mode -> dict of metrics on test data; the first one is shown.
            validate: As `evaluate` on validation data, for choices. Methods that choose need it; barriers use
                `evaluate` without it.
            error: Name of the metric that is the error, or a function of the metrics; lower is better (default: from
                the first metric, 1 - value where higher is better).
            error_scale: The error that counts as 1; an error outside [0, 1] needs it.
            higher_is_better: Of the first metric (default: by its name, lower for loss, error, mse, perplexity ...).
            steps_per_epoch: Batches in an epoch; needed for streams without a length.

        Raises:
            SwampError: The data are of no supported kind, or empty.

        Examples:
            >>> import torch, swamp
            >>> x = torch.randn(64, 8)
            >>> def loss(model, batch):  # an autoencoder: no targets
            ...     return (model(batch) - batch).square().mean()
            >>> def evaluate(model):
            ...     return {"mse": (model(x) - x).square().mean()}
            >>> swamp.Task.custom(x, loss, evaluate)
            Task(train 64 examples; loss loss; evaluated by evaluate)
        """
        own = OwnEvaluation(evaluate, validate, error, higher_is_better)
        return cls(
            as_opaque_data(train, steps_per_epoch),
            None,
            loss=returned,
            forward=ReturnedLoss(loss),
            error_scale=error_scale,
            own=own,
        )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {size:,}" for split, size in self._sizes().items())
        if self.own is not None:
            loss = _name(self.forward.loss if isinstance(self.forward, ReturnedLoss) else self.forward)
            return f"Task({sizes} examples; loss {loss}; evaluated by {_name(self.own.evaluate)})"
        return f"Task({sizes} examples; metrics {', '.join(self.metrics)}; loss {_name(self.loss)})"

    def _repr_html_(self) -> str:
        """A table of the splits, for notebooks."""
        rows = "".join(f"<tr><td>{split}</td><td>{size:,}</td></tr>" for split, size in self._sizes().items())
        return f"<p>{escape(repr(self))}</p><table><tr><th>split</th><th>examples</th></tr>{rows}</table>"

    def _sizes(self) -> dict[str, int]:
        return {split: len(data) for split, data in self.splits.items()}

    @property
    def splits(self) -> dict[str, Data]:
        """Name -> data of each split: train, validation, test; without those that the task does not have."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: data for split, data in found.items() if data is not None}

    @property
    def held_out(self) -> Data:
        """The data for choices: the validation data, or the training data if there is none; never the test data."""
        return self.train if self.validation is None else self.validation

    @property
    def has_validation(self) -> bool:
        """Whether there are validation data, or a function that measures on them."""
        return self.validation is not None or (self.own is not None and self.own.validate is not None)

    @property
    def has_test(self) -> bool:
        """Whether there are test data, or a function that measures on them."""
        return self.test is not None if self.own is None else self.own.tested

    def without_test(self) -> "Task":
        """The same task without its test data: no metric on them is measured.

        Raises:
            SwampError: The task has no validation data, so that nothing held out would remain.
        """
        if not self.has_validation:
            raise SwampError(
                "without test data, models are measured on validation data, and this task has none. Hold some out "
                "(validation=0.1), or give the task validation data."
            )
        return replace(self, test=None, own=None if self.own is None else replace(self.own, tested=False))

    def require_outputs(self, what: str) -> Data:
        """The test data, or the validation data without them.

        Raises SwampError, naming `what`, where the task has functions in place of outputs.
        """
        if self.own is not None:
            raise SwampError(
                f"{what} needs the outputs of the model for each example, and a task of Task.custom has its own loss "
                "and evaluation. Describe the task by Task.of(train, test, loss=..., metrics=...) for it."
            )
        return self.held_out if self.test is None else self.test

    def to(self, device: torch.device) -> "Task":
        """The same task with all data in memory on `device`."""
        return replace(self, **{split: data.to(device) for split, data in self.splits.items()})

    def evaluate(
        self, model: nn.Module, split: Literal["train", "validation", "test"], examples: int | None = None
    ) -> Measured:
        """Metrics and error of `model` on a split, in eval mode.

        Args:
            model: The model to evaluate; the modes of its modules are restored.
            split: A split that the task has. A task of `Task.custom` measures the loss of its training data, and
                "test" is its `evaluate`.
            examples: Largest number of training examples, and of examples for the error (None: all).
        """
        if self.own is not None:
            return self._own_measured(model, self.own, split, examples)
        data = self.splits[split]
        part = sampled(data, examples)
        outputs, targets = predict(model, self, part)
        error = self.error_of(outputs, targets) if self.error or "accuracy" in self.metrics else math.nan
        if split != "train" and part is not data:
            outputs, targets = predict(model, self, data)
        return Measured({name: metric(outputs, targets) for name, metric in self.metrics.items()}, error)

    def error_on_held_out(self, model: nn.Module, examples: int | None = None) -> float:
        """The error on at most `examples` of the data for choices, in units of `error_scale`."""
        if self.own is not None:
            return self.evaluate(model, "validation" if self.has_validation else "test").error
        return self.error_of(*predict(model, self, sampled(self.held_out, examples)))

    def error_of(self, outputs: Tensor, targets: Tensor) -> float:
        """Error: `error` of the task in units of `error_scale`, or 1 - accuracy."""
        if self.error is not None:
            return float(self.error(outputs, targets)) / (self.error_scale or 1.0)
        if "accuracy" not in self.metrics:
            raise SwampError("a task without an 'accuracy' metric must name its own error: Task(error=...).")
        return 1 - self.metrics["accuracy"](outputs, targets)

    def _own_measured(self, model: nn.Module, own: OwnEvaluation, split: str, examples: int | None) -> Measured:
        device = next(model.parameters()).device
        # Evaluations may draw random numbers, such as the episodes of a policy: each model gets the same ones.
        with in_mode(model, training=False), isolated(Seed(0).at("evaluation"), device):
            if split == "train":
                return Measured({"loss": self._mean_loss(model, device, examples)}, math.nan)
            metrics = own.metrics(model, validation=split == "validation")
        return Measured(metrics, own.error_of(metrics) / (self.error_scale or 1.0))

    def _mean_loss(self, model: nn.Module, device: torch.device, examples: int | None) -> float:
        """Mean of the losses of training batches, weighted by their examples; NaN without any."""
        batches = sampled(self.train, examples).in_order(_fast_batch(self.train, device))
        losses: list[tuple[float, int]] = []
        for batch in first_of(batches, examples):
            inputs, targets = batch_to(batch, device)
            losses.append((float(self.forward(model, to_memory_format_of(model, inputs)).detach()), len(targets)))
        seen = sum(count for _, count in losses)
        return sum(loss * count for loss, count in losses) / seen if seen else math.nan


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Generator[None]:
    """Train or eval mode inside the block; then the mode of every module is restored."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        if training:
            model.train()
        else:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def predict(
    model: nn.Module, task: Task, data: Data, *, examples: int | None = None, batch_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The model's outputs and the targets of the examples of `data`, in order, in eval mode.

    A model that draws random numbers in eval mode draws the same ones in each call: the global generators are seeded
    and restored afterwards.

    Args:
        model: Runs on the device it is on; the train or eval mode of its modules is restored.
        task: Its `forward` calls the model.
        data: One split of a task, such as `task.test`.
        examples: Largest number of examples, a fixed random subset (default: all), see `sampled`.
        batch_size: Examples in each call of the model (default: a size that suits the model's device).

    Returns:
        Outputs (examples, ...) and targets (examples, ...), on the model's device.

    Examples:
        >>> import torch
        >>> data = torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 0])
        >>> task = Task.of(train=data, test=data)
        >>> outputs, targets = predict(torch.nn.Linear(4, 2), task, task.test)
        >>> outputs.shape, targets.tolist()
        (torch.Size([5, 2]), [0, 1, 0, 1, 0])
    """
    task.require_outputs("predict")
    # An exported network has buffers only.
    device = next(chain(model.parameters(), model.buffers())).device
    data = sampled(data, examples)
    batch_size = batch_size or _fast_batch(data, device)
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    with in_mode(model, training=False), isolated(Seed(0).at("evaluation"), device):
        batches = data.in_order(batch_size if examples is None else min(batch_size, examples))
        for batch in first_of(batches, examples):
            inputs, target = batch_to(batch, device)
            outputs.append(task.forward(model, to_memory_format_of(model, inputs)))
            targets.append(target)
    return joined(outputs, "outputs")[:examples], joined(targets, "targets")[:examples]


def joined(parts: list[Tensor], what: str) -> Tensor:
    """The `what` (outputs or targets) of all batches. Raises SwampError if the shapes of their examples differ."""
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        first, second, *_ = sorted(shapes)
        raise SwampError(
            f"the {what} of two batches have the shapes (examples, *{first}) and (examples, *{second}), so metrics of "
            "the whole data set are not defined. Pad all batches to one length, or use Task.custom(train, loss, "
            "evaluate), whose evaluate computes the metrics itself."
        )
    return torch.cat(parts)


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
        examples: Largest number of examples, a fixed random subset (default: all).

    Returns:
        Metric name -> value.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)
        >>> data = torch.tensor([[1.0, 0], [0, 1], [0, 2], [3, 0]]), torch.tensor([0, 1, 1, 1])
        >>> evaluate(model, Task.of(train=data, test=data), as_data(data))["accuracy"]
        0.75
    """
    outputs, targets = predict(model, task, data, examples=examples)
    return {name: metric(outputs, targets) for name, metric in task.metrics.items()}
