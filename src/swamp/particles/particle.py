"""Particle: one trained copy of a ticket on a mask, and the mean of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from swamp.errors import SwampError
from swamp.files import digest, load_tensors, save_tensors
from swamp.training import State, mean


@dataclass(frozen=True, eq=False)
class Particle:
    """A trained copy: its weights, and where they come from."""

    weights: Mapping[str, Tensor]
    """A whole state dict: the mean or moving average where weights were averaged, else the last iterate."""
    index: int
    """Which particle of its cycle; with the cycle it names the batch order."""
    ticket: str
    """Id of the ticket it started from."""
    mask: str
    """Digest of the mask it was trained on."""
    averaged: int
    """Samples in the average; 0 for a last iterate."""
    steps: int
    losses: tuple[float, ...]
    """Mean training loss of each epoch."""
    seconds: float

    def save(self, path: Path | str) -> None:
        """Write the particle as safetensors, everything but the weights in the metadata."""
        metadata = {
            "format": "swamp-particle-1",
            "index": str(self.index),
            "ticket": self.ticket,
            "mask": self.mask,
            "averaged": str(self.averaged),
            "steps": str(self.steps),
            "losses": " ".join(map(repr, self.losses)),
            "seconds": repr(self.seconds),
            "weights": digest(self.weights),
        }
        save_tensors(Path(path), self.weights, metadata)

    @classmethod
    def load(cls, path: Path | str) -> "Particle":
        """Read what `save` wrote. Raises SwampError for any other or altered file."""
        weights, metadata = load_tensors(Path(path))
        if metadata.get("format") != "swamp-particle-1":
            raise SwampError(f"{path} is not a particle (format {metadata.get('format')!r}).")
        if digest(weights) != metadata.get("weights"):
            raise SwampError(f"{path} is damaged: its weights do not match its own checksum. Delete it and resume.")
        try:
            return cls(
                weights,
                int(metadata["index"]),
                metadata["ticket"],
                metadata["mask"],
                int(metadata["averaged"]),
                int(metadata["steps"]),
                tuple(map(float, metadata["losses"].split())),
                float(metadata["seconds"]),
            )
        except (KeyError, ValueError) as error:
            raise SwampError(f"{path} is damaged: its description is not whole ({error}). Delete it.") from error


def mean_of(particles: Sequence[Particle]) -> State:
    """Equal-weight mean of particles of one ticket and one mask. Raises SwampError when they do not belong together."""
    if not particles:
        raise SwampError("there is no particle to average.")
    for what, origins in (("ticket", {p.ticket for p in particles}), ("mask", {p.mask for p in particles})):
        if len(origins) > 1:
            raise SwampError(
                f"these particles come from {len(origins)} different {what}s ({', '.join(sorted(origins))}); "
                "the mean of unrelated networks is meaningless. Train them from one ticket on one mask."
            )
    return mean(particle.weights for particle in particles)
