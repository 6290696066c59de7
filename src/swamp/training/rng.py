"""DropoutStream by name: every stream is a pure function of one seed and the path of names that leads to it."""

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Seed:
    """A seed and a path of names. Equal seeds and paths give equal numbers; different paths are independent."""

    root: int
    path: tuple[str | int, ...] = ()
    borrowed: tuple[tuple[str, "Seed"], ...] = ()
    """Names right below this path whose streams are another seed's."""

    def at(self, *names: str | int) -> "Seed":
        """The seed further down the path, e.g. `seed.at("cycle", 3, "particle", 1)`."""
        for name, other in self.borrowed:
            if names[:1] == (name,):
                return other.at(*names)
        return Seed(self.root, (*self.path, *names))

    def borrowing(self, other: "Seed", *names: str) -> "Seed":
        """This seed, but with the streams `names` of `other`: trainings of both differ in these alone.

        A training draws its batch order from "order", augmentation from "augment" (what a DataLoader does at random:
        "loader"), and what forward passes draw, dropout first of all, from "noise".
        """
        return Seed(self.root, self.path, (*((name, other) for name in names), *self.borrowed))

    def number(self) -> int:
        """63 bits that stand for this path."""
        text = "/".join([str(self.root), *map(repr, self.path)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator at the start of this stream."""
        return torch.Generator(device).manual_seed(self.number())


def permutation(seed: Seed, epoch: int, examples: int) -> Tensor:
    """Order of the examples in one epoch (int64, on CPU)."""
    return torch.randperm(examples, generator=seed.at("order", epoch).generator())


@contextmanager
def isolated(seed: Seed, device: torch.device | str = "cpu") -> Generator[None]:
    """Seed the global generators of torch, NumPy and Python inside the block, then restore them.

    Initialisers, dropout and the random transforms of a data set can use no other.
    """
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        reseed_global(seed.number(), device)
        np.random.seed(seed.number() % 2**32)
        random.seed(seed.number())
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)


def reseed_global(number: int, device: torch.device) -> None:
    """Set torch's global generators, of the CPU and of `device`. Call only inside `isolated`, which restores it."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        # torch seeds the current GPU, which need not be the model's.
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
