"""From text to token ids, without any library: by byte, or by the words of the training text."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

Fields = dict[str, list[list[int]]]
"""Name of an input -> for each text its numbers, all as long as `input_ids`."""

PADDING, BEGIN, BETWEEN, OTHER = range(4)
_SPECIAL = 4
_WORD = re.compile(r"\w+|[^\w\s]")


class Tokenizer(Protocol):
    """Text to numbers below `vocabulary`; `padding` fills what is shorter, `end` parts one text from the next."""

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are."""
        ...

    @property
    def padding(self) -> int:
        """The token that fills a batch."""
        ...

    @property
    def end(self) -> int:
        """The token between two texts of a stream."""
        ...

    def encode(self, texts: Sequence[str], second: Sequence[str] | None, length: int) -> Fields:
        """Texts, or pairs of texts, with the tokens that mark them, cut to `length`; at least `input_ids`."""
        ...

    def stream(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text by itself, without any marks, uncut."""
        ...


@dataclass(frozen=True)
class Words:
    """A token for each byte of UTF-8, or for each of the words it knows: lower case, punctuation by itself."""

    known: dict[str, int] = field(default_factory=dict[str, int])
    """Word -> token; empty: tokens are bytes."""

    padding: int = PADDING
    end: int = BETWEEN

    @classmethod
    def of(cls, texts: Sequence[str], most: int = 8000) -> "Words":
        """The words that occur twice or more in `texts`, the most frequent first, at most so many."""
        counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
        common = [word for word, count in counts.most_common(most) if count > 1]
        return cls({word: number for number, word in enumerate(common, _SPECIAL)})

    @property
    def vocabulary(self) -> int:
        """Words or bytes, and the special tokens."""
        return _SPECIAL + (len(self.known) or 256)

    def encode(self, texts: Sequence[str], second: Sequence[str] | None, length: int) -> Fields:
        """A begin, the text and, of a pair, a mark and the second text; the longer one is cut first."""
        ids = self.stream(texts)
        if second is None:
            return {"input_ids": [[BEGIN, *one][:length] for one in ids]}
        pairs = zip(ids, self.stream(second), strict=True)
        return {"input_ids": [_joined(one, other, length) for one, other in pairs]}

    def stream(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text by itself."""
        if self.known:
            return [[self.known.get(word, OTHER) for word in _WORD.findall(text.lower())] for text in texts]
        return [[_SPECIAL + byte for byte in text.encode()] for text in texts]


def _joined(one: list[int], other: list[int], length: int) -> list[int]:
    room = max(0, length - 2)
    half = room // 2
    first = min(len(one), max(half, room - len(other)))
    return [BEGIN, *one[:first], BETWEEN, *other[: room - first]]
