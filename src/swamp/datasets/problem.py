"""A ready-made problem: a task, the shape of one input and the number of classes."""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.datasets.environments import Agent
from swamp.errors import SwampError
from swamp.fields import check_fields
from swamp.models.transformer import Tokens
from swamp.training.augment import Augment
from swamp.training.data import TensorData
from swamp.training.rng import Seed
from swamp.training.task import Task


@dataclass(frozen=True)
class TextOptions:
    """How text is tokenised, and which columns are read."""

    tokenizer: str = ""
    """bytes, words (of the training text), or the folder or name of a Hugging Face tokenizer; empty: the tokenizer of
    the pretrained model, or bytes."""
    length: int = 128
    """Maximum number of tokens per example; longer ones are cut. For a language model: the context length."""
    columns: tuple[str, ...] = ()
    """Columns with the text, two for pairs of sentences; empty: columns with common names."""
    label: str = ""
    """Column with the class or number to predict; empty: a column with a common name (of csv, else the last one)."""
    neutral: float = 1 / 3
    """Fraction of the movie reviews to leave out: those rated nearest to neutral."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.length < 2:
            raise SwampError(
                f"length is {self.length}; expected the maximum number of tokens per example, 2 or more, e.g. 128."
            )
        if len(self.columns) > 2:
            raise SwampError(f"columns are {', '.join(self.columns)}; expected one, or two for pairs of sentences.")
        if not 0 <= self.neutral < 1:
            raise SwampError(
                f"neutral is {self.neutral}; expected the fraction of reviews to leave out, 0 <= neutral < 1."
            )


@dataclass(frozen=True)
class LabelOptions:
    """What a semi-supervised task reads and minimises."""

    labelled: int = 0
    """Semi-supervised tasks: number of training examples whose label is read, drawn at random, those held out for
    validation included; 0: all."""
    objective: str = ""
    """Loss of semi-supervised tasks: fixmatch, mean-teacher, pi-model, or supervised (labelled examples only); empty:
    fixmatch."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.labelled < 0:
            raise SwampError(f"labelled is {self.labelled}; expected a number of training examples, or 0 for all.")


@dataclass(frozen=True)
class DataOptions:
    """Which data to use, and how much of it. Raises SwampError for invalid values."""

    folder: str = ""
    """Folder of the data, or the file of npz and csv; empty: the default places."""
    examples: int = 0
    """Number of training examples to use; 0: all that are not held out."""
    validation: float = 0.1
    """Fraction of the training examples held out for validation, from 0 (none) to below 1."""
    classes: str = ""
    """Classes to use, e.g. 0-4 or 1,3,7-9; they are numbered from 0 again (empty: all)."""
    augment: bool = True
    """Augment training examples at random (crops, flips or shifts, depending on the task)."""
    workers: int = 0
    """Number of data loading processes, for data that does not fit in memory; 0: read in this process."""
    text: TextOptions = field(default_factory=TextOptions)
    labels: LabelOptions = field(default_factory=LabelOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.examples < 0:
            raise SwampError(f"examples is {self.examples}; expected the number of training examples, or 0 for all.")
        if not 0 <= self.validation < 1:
            raise SwampError(
                f"validation is {self.validation}; expected the fraction of training examples to hold out, "
                "from 0 (none) to below 1, e.g. 0.1."
            )
        if self.workers < 0:
            raise SwampError(
                f"workers is {self.workers}; expected a number of processes, or 0 to read data in the main process."
            )


@dataclass(frozen=True)
class Problem:
    """A task, and what a model for it needs.

    Args:
        task: Training, test and validation data, loss and metrics.
        shape: Shape of one input, channels first; for text (maximum number of tokens,).
        classes: Number of outputs.
        tokens: The tokenizer's vocabulary, for text only.
        available: Number of training examples that the data has, used or not; 0: unknown.
        adapt: Adds to a new network what the task needs, such as cluster centres, and returns it. Raises SwampError for
            a network that does not fit the task.
        chosen: The classes of the data that `DataOptions.classes` names; empty: all.
        agent: For reinforcement learning, what trains the model in place of batches of the task.

    Raises:
        SwampError: A classification has one class.
    """

    task: Task
    shape: tuple[int, ...]
    classes: int
    tokens: Tokens | None = None
    available: int = 0
    adapt: Callable[[nn.Module], nn.Module] | None = None
    chosen: tuple[int, ...] = ()
    agent: Agent | None = None

    def __post_init__(self) -> None:
        if self.classes == 1 and self.task.loss is F.cross_entropy:
            raise SwampError("all examples have the same class; a classification needs two classes or more.")


def split_index(count: int, options: DataOptions, seed: Seed) -> tuple[Tensor, Tensor | None]:
    """Indices (int64) of the training and the held-out examples among `count`, drawn by `seed.at("split")`.

    The held-out examples are drawn first, so that they do not depend on `options.examples`. Raises SwampError if fewer
    training examples remain than requested, or none.
    """
    order = torch.randperm(count, generator=seed.at("split").generator())
    # At least one: with a fraction that rounds to 0, training data would silently serve as validation data.
    held_out = max(1, round(count * options.validation)) if options.validation else 0
    left = count - held_out
    if not left or options.examples > left:
        raise SwampError(
            f"{options.examples or 'all'} training examples were requested, but of {count} there remain {left} "
            f"after {held_out} are held out for validation; request fewer, or lower validation "
            f"({options.validation})."
        )
    train = order[held_out : held_out + (options.examples or left)]
    return train, order[:held_out] if held_out else None


def split(data: TensorData, options: DataOptions, seed: Seed) -> tuple[TensorData, TensorData | None]:
    """Training examples, and held-out examples without augmentation (None if the fraction is 0)."""
    train, held_out = split_index(len(data), options, seed)
    if held_out is None:
        # All examples are used for training: no copy of the data is needed.
        return (data if len(train) == len(data) else data.subset(train)), None
    return data.subset(train), data.plain().subset(held_out)


def in_memory(
    arrays: Iterable[Tensor],
    classes: int,
    options: DataOptions,
    seed: Seed,
    augment: Augment,
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> Problem:
    """The problem for data in memory.

    arrays: inputs and classes (int64) for training, then for test. augment: the augmentation of the training examples,
    which `options` can turn off.
    """
    inputs, labels, test_inputs, test_labels = arrays
    shape = tuple(inputs.shape[1:])
    train = TensorData(inputs, labels, augment if options.augment else None, normalise)
    test = TensorData(test_inputs, test_labels, normalise=normalise)
    chosen = chosen_classes(options.classes, classes) if options.classes else ()
    if chosen:
        train, test, classes = _only(train, chosen), _only(test, chosen), len(chosen)
    fitted, held_out = split(train, options, seed)
    return Problem(Task(fitted, test, held_out), shape, classes, available=len(train), chosen=chosen)


def chosen_classes(text: str, classes: int) -> tuple[int, ...]:
    """The classes that `text` names, such as "0-4" or "1,3,7-9", in order. Raises SwampError unless all exist."""
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not first <= last < classes:
            raise SwampError(f"classes is {text!r}; expected numbers from 0 to {classes - 1}, such as 0-4 or 1,3,7-9.")
        found.update(range(first, last + 1))
    if len(found) < 2:
        raise SwampError(f"classes is {text!r}; expected two classes or more.")
    return tuple(sorted(found))


def _only(data: TensorData, classes: Sequence[int]) -> TensorData:
    """The examples of these classes, which are numbered from 0."""
    kept = torch.isin(data.targets, torch.tensor(classes)).nonzero().flatten()
    part = data.subset(kept)
    return replace(part, targets=torch.bucketize(part.targets, torch.tensor(classes)))


@dataclass(frozen=True)
class Normalise:
    """(..., C, H, W) uint8 -> float32: divided by `largest`, minus `mean`, divided by `std` of each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    largest: float = 255.0

    def __call__(self, images: Tensor) -> Tensor:
        """The normalised images, on the device they are on."""
        mean, std = _channels(self.mean, images.device), _channels(self.std, images.device)
        return images.to(torch.float32).div(self.largest).sub(mean).div(std)


@functools.cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Cached: a copy to a GPU at each batch would wait for all previous work.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
