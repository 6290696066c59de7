"""From labelled texts to a problem: the texts are tokenised once and kept in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.datasets.problem import DataOptions, Problem, split_index
from swamp.datasets.text.tokenizer import Words
from swamp.errors import SwampError
from swamp.models.language import HuggingTokenizer
from swamp.models.transformer import Tokens
from swamp.training.data import Data, TensorData
from swamp.training.metrics import (
    LANGUAGE,
    REGRESSION,
    mean_likelihood,
    mean_output,
    token_nll,
    unexplained_variance,
    wrong_tokens,
)
from swamp.training.rng import Seed
from swamp.training.task import Task, call_model
from swamp.training.tokens import TokenData

Tokenizer = Words | HuggingTokenizer


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts, or pairs of texts, and their targets (n,): classes (int64) or numbers (float32)."""

    first: Sequence[str]
    targets: Tensor
    second: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.first:
            raise SwampError("there is no text: got 0 examples, expected at least one.")
        for texts in (self.first, self.second or ()):
            empty = [place for place, text in enumerate(texts) if not text.strip()]
            if empty:
                raise SwampError(
                    f"{len(empty)} of {len(texts)} texts are empty, the first in example {empty[0]} (from 0). "
                    "Remove these examples."
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
    """Text classification. Raises SwampError for labels outside 0 to classes - 1."""
    for texts in filter(None, (train, test, validation)):
        low, high = int(texts.targets.min()), int(texts.targets.max())
        if low < 0 or high >= classes:
            raise SwampError(f"labels range from {low} to {high}, expected 0 to {classes - 1} for {classes} classes.")
    return _problem(train, test, validation, classes, options, seed, _padded, Task)


def regression(train: Texts, test: Texts, options: DataOptions, seed: Seed, validation: Texts | None = None) -> Problem:
    """Regression on text, by least squares. Raises SwampError for targets that are not finite."""
    for texts in filter(None, (train, test, validation)):
        if not bool(torch.isfinite(texts.targets).all()):
            raise SwampError("some of the numbers to predict are not finite. Remove these examples.")

    def task(*data: Any) -> Task:
        return Task(
            *data,
            loss=F.mse_loss,
            metrics=dict(REGRESSION),
            forward=scalar_output,
            error=unexplained_variance,
            combine=mean_output,
        )

    return _problem(train, test, validation, 1, options, seed, _padded, task)


def language(train: Texts, test: Texts, options: DataOptions, seed: Seed, validation: Texts | None = None) -> Problem:
    """Language modelling: predict each token from the previous ones. Texts are joined and cut to blocks of `length`."""

    def task(*data: Any) -> Task:
        return Task(
            *data,
            loss=token_nll,
            metrics=dict(LANGUAGE),
            forward=cast(Any, next_tokens),
            error=wrong_tokens,
            combine=mean_likelihood,
        )

    problem = _problem(train, test, validation, 1, options, seed, _blocks, task)
    assert problem.tokens is not None
    return replace(problem, classes=problem.tokens.vocabulary, tokens=replace(problem.tokens, next=True), available=0)


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
    available = len(train)
    index, held_out = split_index(available, options if validation is None else replace(options, validation=0.0), seed)
    validation = validation if held_out is None else train.at(held_out)
    train = train.at(index)
    length = options.text.length
    name = options.text.tokenizer or "bytes"
    tokenizer = tokenizer_named(name, train)
    parts = [None if texts is None else data(texts, tokenizer, length) for texts in (train, test, validation)]
    return Problem(
        task(*parts), (length,), classes, Tokens(tokenizer.vocabulary, tokenizer.padding, tokenizer=name), available
    )


def tokenizer_named(name: str, texts: Texts) -> Tokenizer:
    """Look up a tokenizer: "bytes", "words" (of `texts`), or the name or folder of a Hugging Face tokenizer."""
    if name == "bytes":
        return Words()
    if name == "words":
        words = Words.of([*texts.first, *(texts.second or ())])
        if not words.known:
            raise SwampError('no word occurs twice in the training text; use the tokenizer "bytes".')
        return words
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
            f"the text has {len(ids)} tokens, expected more than the block length {length}; lower --length."
        )
    # Each block starts with the last token of the previous one, so that each token is predicted once.
    stream = torch.tensor(ids, dtype=torch.int64)
    blocks = stream[: count * length + 1].unfold(0, length + 1, length)
    # One more byte per text, as for the newline of a line.
    each = sum(len(text.encode()) + 1 for text in both) / len(ids)
    return TensorData({"input_ids": blocks.contiguous()}, torch.full((count, length), each))


def scalar_output(model: nn.Module, inputs: Any) -> Tensor:
    """The output of a regression (batch,)."""
    return call_model(model, inputs).float().squeeze(-1)


def next_tokens(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Log probability (nats) of each token after the first, given the previous ones (batch, length - 1).

    Returned in place of logits, which for a large vocabulary would not fit in memory.
    """
    ids = inputs["input_ids"]
    logits = call_model(model, {"input_ids": ids[:, :-1]}).float()
    return -F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
