"""What a network must know of the tokens it reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tokens:
    """What a network must know of its tokens."""

    vocabulary: int
    """How many there are."""
    padding: int
    """The one that fills a batch."""
    next: bool = False
    """Whether the next one is what is to be told."""
    tokenizer: str = "bytes"
    """Who made them."""
