"""Rank correlation."""

import numpy as np
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors, ties at their mean rank; NaN where one of them is constant."""
    if len(a) < 2:
        return float("nan")
    one, other = (_centred_ranks(values) for values in (a, b))
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / scale if scale else float("nan")


def _centred_ranks(values: Tensor) -> np.ndarray:
    ranks = np.asarray(stats.rankdata(values.detach().cpu().numpy()), dtype=np.float64)  # pyright: ignore
    return ranks - ranks.mean()
