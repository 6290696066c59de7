"""Data sets without a download: generated MNIST-1D, and the digits and small tables that scikit-learn contains.

The inputs of the tables are standardised by the training examples.
"""

import importlib.metadata
import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp.datasets.arrays import class_problem, number_problem, with_test
from swamp.datasets.cache import cached
from swamp.datasets.problem import DataOptions, Normalise, Problem, in_memory
from swamp.errors import SwampError, need
from swamp.training.augment import crop_flip, shift_scale_noise
from swamp.training.rng import Seed

_SHIFTED = {"seed": 43, "corr_noise_scale": 0.5, "iid_noise_scale": 0.04, "shear_scale": 1.5}
"""Settings of the generator for the shifted signals; 42, 0.25, 0.02 and 0.75 as published."""
_NORMALISE = Normalise(mean=(0.3053,), std=(0.3760,), largest=16.0)
_TARGET_MEAN, _TARGET_STD = 152.0, 77.0
"""Of the 442 targets of diabetes, rounded."""


def digits(options: DataOptions, seed: Seed) -> Problem:
    """The digits of scikit-learn (UCI, Alpaydin and Kaynak 1998): 1,438 training and 359 test images of 1 x 8 x 8."""
    pixels, labels = of_sklearn("digits")
    images = pixels.to(torch.uint8).reshape(-1, 1, 8, 8)
    parts = with_test("digits", images.numpy(), labels.numpy())
    arrays = (torch.as_tensor(array) for part in ("train", "test") for array in parts[part])
    return in_memory(arrays, 10, options, seed, crop_flip(padding=1, flip=False), _NORMALISE)


def mnist1d(options: DataOptions, seed: Seed) -> Problem:
    """MNIST-1D as published (arXiv:2011.14439): 4,000 training and 1,000 test signals of 40 samples, 10 classes."""
    return _problem(4_000, 1_000, options, seed)


def mnist1d_10k(options: DataOptions, seed: Seed) -> Problem:
    """MNIST-1D from the same generator, larger: 10,000 training and 5,000 test signals."""
    return _problem(10_000, 5_000, options, seed)


def mnist1d_shifted(options: DataOptions, seed: Seed) -> Problem:
    """MNIST-1D of another seed with twice the noise and shear: 10,000 training and 5,000 test signals."""
    return _problem(10_000, 5_000, options, seed, "-shifted", _SHIFTED)


def breast_cancer(options: DataOptions, seed: Seed) -> Problem:
    """Breast cancer of scikit-learn (UCI, Wolberg 1995): 456 training, 113 test rows of 30 numbers, 2 classes."""
    return class_problem("breast-cancer", with_test("breast-cancer", *_table("breast_cancer")), options, seed)


def wine(options: DataOptions, seed: Seed) -> Problem:
    """Wine of scikit-learn (UCI, Aeberhard and Forina 1992): 143 training, 35 test rows of 13 numbers, 3 classes."""
    return class_problem("wine", with_test("wine", *_table("wine")), options, seed)


def diabetes(options: DataOptions, seed: Seed) -> Problem:
    """Diabetes of scikit-learn (Efron et al. 2004): 354 training, 88 test rows of 10 numbers; a regression.

    The progression after a year, 25 to 346, is in units of 77 (its standard deviation) from 152 (its mean).
    """
    inputs, targets = _table("diabetes")
    parts = with_test("diabetes", inputs, (targets - _TARGET_MEAN) / _TARGET_STD)
    return number_problem("diabetes", parts, options, seed)


def _table(name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    inputs, targets = of_sklearn(name)
    return inputs.numpy().astype(np.float32), targets.numpy()


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
    arrays = (made[f"{part}_{values}"] for part in ("train", "test") for values in ("inputs", "targets"))
    return in_memory(arrays, 10, options, seed, shift_scale_noise())


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
