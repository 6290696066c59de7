"""The handwritten digits that come with scikit-learn (UCI, Alpaydin and Kaynak 1998)."""

import numpy as np
import torch

from swamp.datasets.normalise import Normalise
from swamp.datasets.problem import DataOptions, Problem, in_memory
from swamp.optional import need
from swamp.training.augment import crop_flip
from swamp.training.data import TensorData
from swamp.training.order import Seed

_TEST_SHARE = 0.2
_NORMALISE = Normalise(mean=(0.3053,), std=(0.3760,), largest=16.0)


def digits(options: DataOptions, seed: Seed) -> Problem:
    """scikit-learn's bundled digits: 1,438 training and 359 test images of 1 x 8 x 8, 10 classes."""
    bundled = need("sklearn.datasets", "swamp[digits]").load_digits()
    images = torch.as_tensor(np.asarray(bundled.images, np.uint8)).unsqueeze(1)
    labels = torch.as_tensor(np.asarray(bundled.target, np.int64))
    # The test set is the same for every run, so its draw must not depend on the run's seed.
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
