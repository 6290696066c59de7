"""Ticket: the weights every particle of every cycle starts from. Trunk: the part of a training that they share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from swamp.arguments import named_fields
from swamp.backends.extra_state import copied_state, encoded, with_state, without_state
from swamp.errors import CorruptFile, SwampError
from swamp.fields import check_value
from swamp.files import digest, load_tensors, require_format, save_tensors
from swamp.training.average import copied
from swamp.training.snapshot import Snapshot


@named_fields
@dataclass(frozen=True, eq=False)
class Ticket:
    """Weights (a whole state dict) after `steps` training steps: the matching ticket, or what a cycle carries on.

    The ticket keeps a copy: `Ticket(model.state_dict(), 0)` stays as it is while the model trains on.
    """

    weights: Mapping[str, Tensor]
    steps: int
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Extra state with which every particle starts, see CustomTrainer."""

    def __post_init__(self) -> None:
        if not isinstance(cast(Any, self.weights), Mapping):
            kind = type(self.weights).__name__
            raise SwampError(f"weights must be a state dict, got {kind}. Make one with model.state_dict().")
        check_value("steps", int, self.steps)
        if self.steps < 0:
            raise SwampError(f"steps must be 0 or more, got {self.steps}.")
        object.__setattr__(self, "weights", copied(self.weights))
        object.__setattr__(self, "state", copied_state(self.state))

    @cached_property
    def id(self) -> str:
        """Fingerprint of weights and extra state: particles of different tickets must not be averaged."""
        if not self.state:
            return digest(self.weights)
        tensors, structure = encoded(self.state)
        return digest({"weights": _text(digest(self.weights)), "state": _text(digest(tensors) + structure)})

    def save(self, path: Path | str, about: Mapping[str, str] | None = None) -> None:
        """Write the ticket as safetensors. Its steps, its id and `about` are metadata."""
        metadata = {**(about or {}), "format": "swamp-ticket-1", "steps": str(self.steps), "id": self.id}
        save_tensors(Path(path), *with_state(self.weights, metadata, self.state))

    @classmethod
    def load(cls, path: Path | str) -> "Ticket":
        """Read what `save` wrote. Raises SwampError for any other or altered file."""
        stored, metadata = load_tensors(Path(path))
        require_format(path, metadata, "swamp-ticket-1", "a ticket")
        weights, state = without_state(stored, metadata, path)
        try:
            ticket, stated = cls(weights, int(metadata["steps"]), state), metadata["id"]
        except (KeyError, ValueError) as error:
            raise CorruptFile(f"{path} is damaged: its description is not whole ({error}). Restore it.") from error
        if ticket.id != stated:
            raise CorruptFile(f"{path} is damaged: its weights do not match its own checksum. Restore it or run again.")
        return ticket


TRUNK = -1
"""Index of a trunk where a training is named by the index of its particle."""


@dataclass(frozen=True, eq=False)
class Trunk:
    """The first part of a cycle's training, trained once; all particles of the cycle go on from its end."""

    snapshot: Snapshot
    """Weights, optimizer state and running mean where the particles separate."""
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Extra state that a custom trainer returned."""
    seconds: float = 0.0


def _text(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
