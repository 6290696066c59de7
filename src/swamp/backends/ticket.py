"""Ticket: the weights every particle of every cycle starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from swamp.errors import CorruptFile
from swamp.files import digest, load_tensors, require_format, save_tensors
from swamp.training.average import copied


@dataclass(frozen=True, eq=False)
class Ticket:
    """Weights (a whole state dict) after `steps` training steps: the matching ticket, or what a cycle carries on.

    The ticket keeps a copy: `Ticket(model.state_dict(), 0)` stays as it is while the model trains on.
    """

    weights: Mapping[str, Tensor]
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", copied(self.weights))

    @cached_property
    def id(self) -> str:
        """Fingerprint of the weights: particles of different tickets must not be averaged."""
        return digest(self.weights)

    def save(self, path: Path | str, about: Mapping[str, str] | None = None) -> None:
        """Write the ticket as safetensors, its steps and id in the metadata, and what is said `about` it."""
        metadata = {**(about or {}), "format": "swamp-ticket-1", "steps": str(self.steps), "id": self.id}
        save_tensors(Path(path), self.weights, metadata)

    @classmethod
    def load(cls, path: Path | str) -> "Ticket":
        """Read what `save` wrote. Raises SwampError for any other or altered file."""
        weights, metadata = load_tensors(Path(path))
        require_format(path, metadata, "swamp-ticket-1", "a ticket")
        try:
            ticket, stated = cls(weights, int(metadata["steps"])), metadata["id"]
        except (KeyError, ValueError) as error:
            raise CorruptFile(f"{path} is damaged: its description is not whole ({error}). Restore it.") from error
        if ticket.id != stated:
            raise CorruptFile(f"{path} is damaged: its weights do not match its own checksum. Restore it or run again.")
        return ticket
