"""Particle: one trained copy of a ticket on a mask, and the mean of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swamp.backends.extra_state import with_state, without_state
from swamp.errors import CorruptFile, SwampError, shortened, warn
from swamp.files import load_tensors, require_format, save_tensors
from swamp.training.average import State, mean
from swamp.training.nan_checks import is_finite


@dataclass(frozen=True, eq=False)
class Particle:
    """A trained copy of a ticket: its weights, and the ticket and mask from which it was trained."""

    weights: Mapping[str, Tensor]
    """A whole state dict: the mean or moving average where weights were averaged, else the last iterate."""
    index: int
    """Number of the particle in its cycle; cycle and number determine the batch order."""
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
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Extra state that a custom trainer returned."""

    def save(self, path: Path | str, about: Mapping[str, str] | None = None) -> None:
        """Write the particle as safetensors. Everything except the weights is metadata; `about` is added to it."""
        metadata = {
            **(about or {}),
            "format": "swamp-particle-1",
            "index": str(self.index),
            "ticket": self.ticket,
            "mask": self.mask,
            "averaged": str(self.averaged),
            "steps": str(self.steps),
            "losses": " ".join(map(repr, self.losses)),
            "seconds": repr(self.seconds),
        }
        save_tensors(Path(path), *with_state(self.weights, metadata, self.state))

    @classmethod
    def load(cls, path: Path | str) -> "Particle":
        """Read what `save` wrote. Raises SwampError for any other or altered file."""
        stored, metadata = load_tensors(Path(path))
        require_format(path, metadata, "swamp-particle-1", "a particle")
        weights, state = without_state(stored, metadata, path)
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
                state,
            )
        except (KeyError, ValueError) as error:
            raise CorruptFile(
                f"{path} is damaged: its description is incomplete ({error}). Delete it, then resume."
            ) from error


def mean_of(particles: Sequence[Particle]) -> State:
    """Equal-weight mean of particles. Raises SwampError if they have different tickets or masks."""
    if not particles:
        raise SwampError("there is no particle to average.")
    for what, origins in (("ticket", {p.ticket for p in particles}), ("mask", {p.mask for p in particles})):
        if len(origins) > 1:
            raise SwampError(
                f"these particles come from {len(origins)} different {what}s ({', '.join(sorted(origins))}); "
                "the mean of unrelated networks is meaningless. Train them from one ticket on one mask."
            )
    return mean(particle.weights for particle in particles)


def warn_if_equal(particles: Sequence[Particle]) -> None:
    """Warn of particles with the weights of the first: their mean costs several trainings and is worth one."""
    first, *others = particles
    equal = [p.index for p in others if all(torch.equal(first.weights[n], value) for n, value in p.weights.items())]
    if equal:
        warn(
            f"particles {shortened([str(index) for index in (first.index, *equal)])} have the same weights, bit for "
            "bit, so that averaging them changes nothing. Either nothing is random in this training, or a trainer of "
            "your own seeds it itself: each particle needs its own seed, job.number."
        )


def require_unbroken(particles: Sequence[Particle]) -> None:
    """Raise SwampError, naming the particle, if weights are NaN or infinite: their mean would be too.

    Infinities that are equal in all particles are allowed, such as a buffer that masks attention.
    """
    first = particles[0].weights
    wrong = {name: p.index for p in particles for name, value in p.weights.items() if not is_finite(value)}
    for name, index in wrong.items():
        if not all(torch.equal(first[name], particle.weights[name]) for particle in particles):
            raise SwampError(
                f"particle {index} has NaN or infinity in {name!r}, and so would the mean. Leave this particle out, or "
                "train it again with a smaller learning rate."
            )
