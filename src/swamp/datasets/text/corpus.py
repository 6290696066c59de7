"""From labelled texts to a problem: tokenised once, kept in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from swamp.datasets.problem import DataOptions, Problem, split_index
from swamp.datasets.text.goals import (
    LANGUAGE,
    REGRESSION,
    mean_likelihood,
    mean_output,
    next_tokens,
    number,
    surprise,
    unexplained,
    wrong_guesses,
)
from swamp.datasets.text.tokenizer import Tokenizer, Words
from swamp.errors import SwampError
from swamp.models import Tokens
from swamp.models.pretrained import HuggingTokenizer
from swamp.training.data import Data, TensorData
from swamp.training.order import Seed
from swamp.training.task import Task
from swamp.training.tokens import TokenData


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts, or pairs of them, and what is to be said of each: classes (int64) or numbers (float32), (n,)."""

    first: Sequence[str]
    targets: Tensor
    second: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.first:
            raise SwampError("there is no text: 0 examples were given, at least one is needed.")
        for texts in (self.first, self.second or ()):
            empty = [place for place, text in enumerate(texts) if not text.strip()]
            if empty:
                raise SwampError(
                    f"{len(empty)} of {len(texts)} texts are empty, the first in example {empty[0]} (from 0). Leave "
                    "these examples out."
                )

    def __len__(self) -> int:
        return len(self.first)

    def at(self, index: Tensor) -> "Texts":
        """The examples at `index` (int64)."""
        chosen = cast("list[int]", index.tolist())  # pyright: ignore[reportUnknownMemberType]
        second = None if self.second is None else [self.second[place] for place in chosen]
        return Texts([self.first[place] for place in chosen], self.targets[index], second)


def classification(
    train: Texts, test: Texts, classes: int, options: DataOptions, seed: Seed, validation: Texts | None = None
) -> Problem:
    """Tell the class of a text. Raises SwampError for labels that are not 0 to classes - 1."""
    for texts in filter(None, (train, test, validation)):
        low, high = int(texts.targets.min()), int(texts.targets.max())
        if low < 0 or high >= classes:
            raise SwampError(f"labels go from {low} to {high}, expected 0 to {classes - 1} for {classes} classes.")
    return _problem(train, test, validation, classes, options, seed, _padded, Task)


def regression(train: Texts, test: Texts, options: DataOptions, seed: Seed, validation: Texts | None = None) -> Problem:
    """Tell a number of a text, by least squares. Raises SwampError for numbers that are not finite."""
    for texts in filter(None, (train, test, validation)):
        if not bool(torch.isfinite(texts.targets).all()):
            raise SwampError("some of the numbers to predict are not finite. Leave these examples out.")

    def task(*data: Any) -> Task:
        loss = torch.nn.functional.mse_loss
        return Task(*data, loss=loss, metrics=dict(REGRESSION), forward=number, error=unexplained, together=mean_output)

    return _problem(train, test, validation, 1, options, seed, _padded, task)


def language(train: Texts, test: Texts, options: DataOptions, seed: Seed, validation: Texts | None = None) -> Problem:
    """Go on writing: tell each token from those before it. Texts follow each other; a block has `length` tokens."""

    def task(*data: Any) -> Task:
        return Task(
            *data,
            loss=surprise,
            metrics=dict(LANGUAGE),
            forward=cast(Any, next_tokens),
            error=wrong_guesses,
            together=mean_likelihood,
        )

    problem = _problem(train, test, validation, 1, options, seed, _blocks, task)
    assert problem.tokens is not None
    return replace(problem, classes=problem.tokens.vocabulary, tokens=replace(problem.tokens, next=True))


def _problem(
    train: Texts,
    test: Texts,
    validation: Texts | None,
    classes: int,
    options: DataOptions,
    seed: Seed,
    data: Callable[[Texts, Tokenizer, int], Data],
    task: Callable[..., Task],
) -> Problem:
    own = options if validation is None else replace(options, validation=0.0)
    index, held_out = split_index(len(train), own, seed)
    validation = validation if held_out is None else train.at(held_out)
    train = train.at(index)
    length = options.text.length
    name = options.text.tokenizer or "bytes"
    tokenizer = tokenizer_named(name, train)
    parts = [None if texts is None else data(texts, tokenizer, length) for texts in (train, test, validation)]
    return Problem(task(*parts), (length,), classes, Tokens(tokenizer.vocabulary, tokenizer.padding, tokenizer=name))


def tokenizer_named(name: str, texts: Texts) -> Tokenizer:
    """bytes, words of `texts`, or one of Hugging Face by its folder or name."""
    if name == "bytes":
        return Words()
    if name == "words":
        return Words.of([*texts.first, *(texts.second or ())])
    return HuggingTokenizer.named(name)


def _padded(texts: Texts, tokenizer: Tokenizer, length: int) -> TokenData:
    fields = tokenizer.encode(texts.first, texts.second, length)
    lengths = torch.tensor([len(ids) for ids in fields["input_ids"]])
    flat = {
        name: torch.tensor([i for ids in values for i in ids], dtype=torch.int32) for name, values in fields.items()
    }
    return TokenData(flat, lengths, texts.targets, tokenizer.padding)


def _blocks(texts: Texts, tokenizer: Tokenizer, length: int) -> TensorData:
    both = [*texts.first, *(texts.second or ())]
    ids = [token for one in tokenizer.stream(both) for token in (*one, tokenizer.end)]
    count = (len(ids) - 1) // length
    if not count:
        raise SwampError(
            f"the text has {len(ids)} tokens, too few for one block of {length} and the next; lower --length."
        )
    # A block begins with the last token of the one before, so that each token is predicted once.
    stream = torch.tensor(ids, dtype=torch.int64)
    blocks = stream[: count * length + 1].unfold(0, length + 1, length)
    # Every text is followed by one byte more, as a line is.
    each = sum(len(text.encode()) + 1 for text in both) / len(ids)
    return TensorData({"input_ids": blocks.contiguous()}, torch.full((count, length), each))
