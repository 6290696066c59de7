"""In which pattern weights go: one by one, N:M, or whole channels."""

import re
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from swamp.errors import unknown
from swamp.masks.channels import Channels
from swamp.masks.groups import Groups
from swamp.masks.mask import Mask
from swamp.masks.unstructured import Unstructured


class Structure(Protocol):
    """A pattern. Each has one file."""

    def check_allocation(self, allocation: str) -> None:
        """Raise SwampError for an allocation that the pattern cannot follow."""

    def check(self, mask: Mask, kept: int, floor: int = 0) -> None:
        """Raise SwampError, with the tensor's name, where `mask` cannot have the pattern with `kept` weights."""

    def shrink(self, mask: Mask, scores: Mapping[str, Tensor], kept: int, allocation: str, floor: int) -> Mask:
        """The smaller mask in the pattern; a subset of `mask`. The scores are known to rank all that lives."""
        ...


STRUCTURES: dict[str, type[Unstructured | Groups | Channels]] = {
    "unstructured": Unstructured,
    "n:m": Groups,
    "channel": Channels,
}
"""Patterns by name; n and m are any numbers, as in 2:4."""


def structure_named(name: str) -> Structure:
    """Look a structure up by name, such as "2:4". Raises SwampError with suggestions."""
    if numbers := re.fullmatch(r"(\d+):(\d+)", name):
        return Groups(int(numbers[1]), int(numbers[2]))
    if name == "unstructured":
        return Unstructured()
    if name == "channel":
        return Channels()
    raise unknown("structure", name, [*(other for other in STRUCTURES if other != "n:m"), "2:4", "1:4", "4:8"])


def check_structure(name: str, mask: Mask, kept: int, floor: int = 0) -> None:
    """Raise SwampError, before any training, where `mask` cannot have the pattern with `kept` weights in the end."""
    structure_named(name).check(mask, kept, floor)
