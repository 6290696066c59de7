"""Named random streams: every stream is a pure function of one seed and a path of names."""

import hashlib
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Seed:
    """A random seed with a path of names; each path is an independent random stream.

    Args:
        root: The seed of the run.
        path: Names and numbers, usually set with `at`.
        borrowed: Pairs of a name directly below this path and the seed that replaces its stream; see `borrowing`.

    Examples:
        >>> seed = Seed(0).at("cycle", 3, "particle", 1)
        >>> seed.number() == Seed(0).at("cycle", 3, "particle", 1).number()
        True
        >>> seed.number() == Seed(0).at("cycle", 3, "particle", 2).number()
        False
    """

    root: int
    path: tuple[str | int, ...] = ()
    borrowed: tuple[tuple[str, "Seed"], ...] = ()

    def at(self, *names: str | int) -> "Seed":
        """The seed at a longer path, e.g. `seed.at("cycle", 3, "particle", 1)`."""
        for name, other in self.borrowed:
            if names[:1] == (name,):
                return other.at(*names)
        return Seed(self.root, (*self.path, *names))

    def borrowing(self, other: "Seed", *names: str) -> "Seed":
        """This seed with the streams `names` of `other`: trainings with both seeds differ in these streams only.

        The streams of a training are "order" (order of the examples), "buckets" (order of batches of similar length),
        "augment" (augmentation in memory), "loader" (transforms in a DataLoader) and "noise" (dropout and other random
        numbers in forward passes).
        """
        return Seed(self.root, self.path, (*((name, other) for name in names), *self.borrowed))

    def number(self) -> int:
        """The seed of this stream: the first 63 bits of the SHA-256 hash of root and path."""
        text = "/".join([str(self.root), *map(repr, self.path)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A new torch generator on `device`, seeded with `number()`."""
        return torch.Generator(device).manual_seed(self.number())


def permutation(seed: Seed, epoch: int, examples: int) -> Tensor:
    """Order of the examples in one epoch: (examples,) int64, on the CPU."""
    return torch.randperm(examples, generator=seed.at("order", epoch).generator())


@contextmanager
def isolated(seed: Seed, device: torch.device | str = "cpu") -> Generator[None]:
    """Seed the global generators of torch, NumPy and Python inside the block, then restore them.

    Initialisers of torch and transforms of data sets use these generators.
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
    """Seed torch's global generators, of the CPU and of `device`. Call only inside `isolated`, which restores them."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        # torch seeds the current GPU, which may not be the GPU of the model.
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)


def draws_global(call: Callable[[], Any], device: torch.device) -> bool:
    """Whether `call` draws from the global generators of torch, NumPy or Python, which stay as they were."""
    with isolated(Seed(0).at("probe"), device):
        before = _global_state(device)
        call()
        return before != _global_state(device)


def _global_state(device: torch.device) -> tuple[bytes, ...]:
    of_torch = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return of_torch.numpy().tobytes(), cast(Any, np.random.get_state())[1].tobytes(), repr(random.getstate()).encode()
