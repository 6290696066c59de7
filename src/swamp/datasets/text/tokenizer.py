"""Tokenizers without a library: bytes, or the words of the training text."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

Fields = dict[str, list[list[int]]]
"""Name of a model input -> one list of integers per text, as long as its `input_ids`."""

PADDING, BEGIN, BETWEEN, OTHER = range(4)
_SPECIAL = 4
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Words:
    """Tokenizer with one token for each byte of UTF-8, or for each known word.

    Words are in lower case; a punctuation mark is a word of its own.
    """

    known: dict[str, int] = field(default_factory=dict[str, int])
    """Word -> token; empty: tokens are bytes."""

    padding: int = PADDING
    end: int = BETWEEN
    """The token that separates joined texts."""

    @classmethod
    def of(cls, texts: Sequence[str], most: int = 8000) -> "Words":
        """The `most` most frequent words that occur at least twice in `texts`."""
        counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
        common = [word for word, count in counts.most_common(most) if count > 1]
        return cls({word: number for number, word in enumerate(common, _SPECIAL)})

    @property
    def vocabulary(self) -> int:
        """Number of words or bytes, plus the special tokens."""
        return _SPECIAL + (len(self.known) or 256)

    def encode(self, texts: Sequence[str], second: Sequence[str] | None, length: int) -> Fields:
        """A begin token and the text; for pairs a separator and the second text. The longer text is cut first."""
        ids = self.stream(texts)
        if second is None:
            return {"input_ids": [[BEGIN, *one][:length] for one in ids]}
        pairs = zip(ids, self.stream(second), strict=True)
        return {"input_ids": [_joined(one, other, length) for one, other in pairs]}

    def stream(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        if self.known:
            return [[self.known.get(word, OTHER) for word in _WORD.findall(text.lower())] for text in texts]
        return [[_SPECIAL + byte for byte in text.encode()] for text in texts]


def _joined(one: list[int], other: list[int], length: int) -> list[int]:
    room = max(0, length - 2)
    half = room // 2
    first = min(len(one), max(half, room - len(other)))
    return [BEGIN, *one[:first], BETWEEN, *other[: room - first]]
