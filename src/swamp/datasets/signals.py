"""MNIST-1D (Greydanus and Kobak 2024, arXiv:2011.14439): signals of 40 samples, generated here and never downloaded."""

import importlib.metadata
import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from swamp.datasets.cache import cached
from swamp.datasets.problem import DataOptions, Problem, in_memory
from swamp.errors import SwampError
from swamp.optional import need
from swamp.training.augment import shift_scale_noise
from swamp.training.data import TensorData
from swamp.training.order import Seed


def mnist1d(options: DataOptions, seed: Seed) -> Problem:
    """MNIST-1D as published: 4,000 training and 1,000 test signals of 40 samples, 10 classes."""
    return _problem(4_000, 1_000, options, seed)


def mnist1d_10k(options: DataOptions, seed: Seed) -> Problem:
    """MNIST-1D from the same generator, larger: 10,000 training and 5,000 test signals."""
    return _problem(10_000, 5_000, options, seed)


def generate(train: int, test: int) -> dict[str, Tensor]:
    """Signals (n, 40) float32 and labels (n,) int64 of mnist1d's own generator with its published defaults.

    The generator seeds the global generators of `random` and `numpy.random`; both are put back as they were.
    """
    with _global_generators_kept():
        source = need("mnist1d.data", "mnist1d")
        settings = source.get_dataset_args()
        settings.num_samples = train + test
        settings.train_split = train / (train + test)
        made = source.make_dataset(settings)
    return {
        "train_inputs": torch.as_tensor(np.asarray(made["x"], np.float32)),
        "train_targets": torch.as_tensor(np.asarray(made["y"], np.int64)),
        "test_inputs": torch.as_tensor(np.asarray(made["x_test"], np.float32)),
        "test_targets": torch.as_tensor(np.asarray(made["y_test"], np.int64)),
    }


def _problem(train: int, test: int, options: DataOptions, seed: Seed) -> Problem:
    try:
        version = importlib.metadata.version("mnist1d")
    except importlib.metadata.PackageNotFoundError as error:
        raise SwampError("this task needs mnist1d, which is not installed. Install it: pip install mnist1d") from error
    # Kept, as 0.2 ms an example adds up over the runs of a sweep.
    made = cached(f"mnist1d-{version}-{train}-{test}", lambda: generate(train, test))
    return in_memory(
        TensorData(made["train_inputs"], made["train_targets"], augment=shift_scale_noise()),
        TensorData(made["test_inputs"], made["test_targets"]),
        10,
        options,
        seed,
    )


@contextmanager
def _global_generators_kept() -> Generator[None]:
    python, numbers = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
