"""Data sets without a download: generated MNIST-1D, and the digits that scikit-learn contains."""

import importlib.metadata
import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from swamp.datasets.cache import cached
from swamp.datasets.problem import DataOptions, Normalise, Problem, in_memory
from swamp.errors import SwampError
from swamp.optional import need
from swamp.training.augment import crop_flip, shift_scale_noise
from swamp.training.data import TensorData
from swamp.training.rng import Seed

_TEST_SHARE = 0.2
_SHIFTED = {"seed": 43, "corr_noise_scale": 0.5, "iid_noise_scale": 0.04, "shear_scale": 1.5}
"""Settings of the generator for the shifted signals; 42, 0.25, 0.02 and 0.75 as published."""
_NORMALISE = Normalise(mean=(0.3053,), std=(0.3760,), largest=16.0)


def digits(options: DataOptions, seed: Seed) -> Problem:
    """The digits of scikit-learn (UCI, Alpaydin and Kaynak 1998): 1,438 training and 359 test images of 1 x 8 x 8."""
    pixels, labels = of_sklearn("digits")
    images = pixels.to(torch.uint8).reshape(-1, 1, 8, 8)
    # The test set is the same for every run: its draw does not depend on the run's seed.
    order = torch.randperm(len(labels), generator=Seed(0).at("digits", "test").generator())
    tests = int(_TEST_SHARE * len(labels))
    test, train = order[:tests], order[tests:]
    return in_memory(
        TensorData(images[train], labels[train], crop_flip(padding=1, flip=False), _NORMALISE),
        TensorData(images[test], labels[test], normalise=_NORMALISE),
        10,
        options,
        seed,
    )


def mnist1d(options: DataOptions, seed: Seed) -> Problem:
    """MNIST-1D as published (arXiv:2011.14439): 4,000 training and 1,000 test signals of 40 samples, 10 classes."""
    return _problem(4_000, 1_000, options, seed)


def mnist1d_10k(options: DataOptions, seed: Seed) -> Problem:
    """MNIST-1D from the same generator, larger: 10,000 training and 5,000 test signals."""
    return _problem(10_000, 5_000, options, seed)


def mnist1d_shifted(options: DataOptions, seed: Seed) -> Problem:
    """MNIST-1D of another seed with twice the noise and shear: 10,000 training and 5,000 test signals."""
    return _problem(10_000, 5_000, options, seed, "-shifted", _SHIFTED)


def of_sklearn(name: str) -> tuple[Tensor, Tensor]:
    """Inputs (n, k) float64 and targets (n,) of a data set that scikit-learn contains.

    They are cached: importing scikit-learn takes as long as importing torch.
    """

    def load() -> dict[str, Tensor]:
        load_named = getattr(need("sklearn.datasets", "swamp[digits]"), f"load_{name}")
        return dict(zip(("inputs", "targets"), map(torch.as_tensor, load_named(return_X_y=True)), strict=True))

    found = cached(f"sklearn-{name}-{_version('scikit-learn', 'swamp[digits]')}", load)
    return found["inputs"], found["targets"]


def generate(train: int, test: int, changes: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """Signals (n, 40) float32 and labels (n,) int64 from the generator of mnist1d with its published defaults.

    changes: settings of the generator in place of its defaults.
    It seeds the global generators of `random` and `numpy.random`; both are restored afterwards.
    """
    with _global_generators_kept():
        source = need("mnist1d.data", "mnist1d")
        settings = source.get_dataset_args()
        settings.num_samples = train + test
        settings.train_split = train / (train + test)
        for name, value in (changes or {}).items():
            setattr(settings, name, value)
        made = source.make_dataset(settings)
    return {
        "train_inputs": torch.as_tensor(np.asarray(made["x"], np.float32)),
        "train_targets": torch.as_tensor(np.asarray(made["y"], np.int64)),
        "test_inputs": torch.as_tensor(np.asarray(made["x_test"], np.float32)),
        "test_targets": torch.as_tensor(np.asarray(made["y_test"], np.int64)),
    }


def _problem(
    train: int,
    test: int,
    options: DataOptions,
    seed: Seed,
    kind: str = "",
    changes: Mapping[str, float] | None = None,
) -> Problem:
    version = _version("mnist1d", "mnist1d")
    # Cached: 0.2 ms per example add up over the runs of a sweep.
    made = cached(f"mnist1d{kind}-{version}-{train}-{test}", lambda: generate(train, test, changes))
    return in_memory(
        TensorData(made["train_inputs"], made["train_targets"], augment=shift_scale_noise()),
        TensorData(made["test_inputs"], made["test_targets"]),
        10,
        options,
        seed,
    )


def _version(package: str, install: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise SwampError(
            f"this task needs {package}, which is not installed. Install it: pip install '{install}'"
        ) from error


@contextmanager
def _global_generators_kept() -> Generator[None]:
    python, numbers = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
