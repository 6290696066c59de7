"""Small tables that scikit-learn contains, as tasks; inputs are standardised by the training examples."""

from typing import Any

import numpy as np

from swamp.datasets.arrays import class_problem, number_problem, with_test
from swamp.datasets.bundled import of_sklearn
from swamp.datasets.problem import DataOptions, Problem
from swamp.training.rng import Seed

_TARGET_MEAN, _TARGET_STD = 152.0, 77.0
"""Of the 442 targets of diabetes, rounded."""


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
