"""A ready-made problem: its data, the shape of one input and the number of classes."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.fields import check_fields
from swamp.models import Tokens
from swamp.training.data import TensorData
from swamp.training.order import Seed
from swamp.training.task import Task


@dataclass(frozen=True)
class TextOptions:
    """How text becomes tokens, and which of its columns are read."""

    tokenizer: str = ""
    """bytes, words (of the training text), or the folder or name of a Hugging Face tokenizer; empty: the pretrained
    model's own, bytes for other networks."""
    length: int = 128
    """Tokens of an example at most; longer ones are cut. Of a language model: tokens that it sees at once."""
    columns: tuple[str, ...] = ()
    """Columns of the text, two for pairs of sentences; empty: those with the usual names."""
    label: str = ""
    """Column of the class or number to predict; empty: the one with the usual name."""
    neutral: float = 1 / 3
    """Share of the movie reviews, those rated nearest to neutral, that are left out as neither good nor bad."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.length < 2:
            raise SwampError(f"length is {self.length}; give the most tokens of an example, 2 or more, e.g. 128.")
        if len(self.columns) > 2:
            raise SwampError(f"columns are {', '.join(self.columns)}; give one, or two for pairs of sentences.")
        if not 0 <= self.neutral < 1:
            raise SwampError(f"neutral is {self.neutral}; give the share of reviews to leave out, 0 <= share < 1.")


@dataclass(frozen=True)
class DataOptions:
    """Which data is used, and how much of it. Raises SwampError for values that cannot be."""

    folder: str = ""
    """Where the data lies; empty: the usual places."""
    examples: int = 0
    """Training examples to use; 0: all that are not held out."""
    validation: float = 0.1
    """Share of the training examples held out for choices, 0 <= share < 1; 0: none."""
    augment: bool = True
    """Change training examples at random (crops, flips, shifts; each task its own)."""
    workers: int = 0
    """Processes that read data which does not fit in memory; 0: none but this one."""
    text: TextOptions = field(default_factory=TextOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.examples < 0:
            raise SwampError(f"examples is {self.examples}; give the number of training examples, or 0 for all.")
        if not 0 <= self.validation < 1:
            raise SwampError(
                f"validation is {self.validation}; give the share of training examples to hold out, "
                "from 0 (none) to below 1, e.g. 0.1."
            )
        if self.workers < 0:
            raise SwampError(f"workers is {self.workers}; give a number of processes, or 0 to read in this one.")


@dataclass(frozen=True)
class Problem:
    """What is learned, for any model that takes inputs of `shape` (channels first) and gives `classes` outputs.

    Text has tokens: `shape` is then the most tokens of an example.
    """

    task: Task
    shape: tuple[int, ...]
    classes: int
    tokens: Tokens | None = None


def split_index(count: int, options: DataOptions, seed: Seed) -> tuple[Tensor, Tensor | None]:
    """Indices (int64) of the training and the held-out examples among `count`, drawn by `seed.at("split")`.

    The held-out examples come first in the draw, so that they stay the same whatever `options.examples` is.
    Raises SwampError where fewer training examples remain than are asked for, or none.
    """
    order = torch.randperm(count, generator=seed.at("split").generator())
    # At least one: a share that rounds to nothing would silently leave choices to the training data.
    held_out = max(1, round(count * options.validation)) if options.validation else 0
    left = count - held_out
    if not left or options.examples > left:
        raise SwampError(
            f"{options.examples or 'all'} training examples were asked for, but of {count} there remain {left} "
            f"after {held_out} are held out for validation; ask for fewer, or lower validation "
            f"({options.validation})."
        )
    train = order[held_out : held_out + (options.examples or left)]
    return train, order[:held_out] if held_out else None


def split(data: TensorData, options: DataOptions, seed: Seed) -> tuple[TensorData, TensorData | None]:
    """The examples to train on and the held-out ones (None where the share is 0), the latter never augmented."""
    train, held_out = split_index(len(data), options, seed)
    if held_out is None:
        # Nothing held out and nothing left out: no copy of the data is needed.
        return (data if len(train) == len(data) else data.subset(train)), None
    return data.subset(train), data.plain().subset(held_out)


def in_memory(train: TensorData, test: TensorData, classes: int, options: DataOptions, seed: Seed) -> Problem:
    """The problem of data held in memory as one tensor of inputs; the training data brings its augmentation."""
    if not isinstance(train.inputs, Tensor):
        raise SwampError("inputs must be one tensor for a ready-made task; got a mapping of tensors.")
    shape = tuple(train.inputs.shape[1:])
    fitted, held_out = split(train if options.augment else train.plain(), options, seed)
    return Problem(Task(fitted, test.plain(), held_out), shape, classes)
