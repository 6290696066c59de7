"""Ready-made studies. A study is a function, as a recipe is; its runs lie under studies/NAME."""

from collections.abc import Mapping, Sequence
from typing import Any

from swamp.algorithms import METHODS
from swamp.runs import CompareOptions, Study

SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.98)
"""Rows of the field's usual table."""
_ON_THE_WAY = (1.0, 0.71, 0.5, 0.35, 0.25, 0.16, 0.1, 0.05, 0.02)
"""Densities of an iterative run that meets them all."""


def demo() -> Study:
    """IMP and SWAMP on the digits, two seeds each: a minute, to see what a study is."""
    return Study(recipe="digits-mlp", grid={"method": ["imp", "swamp"], "seed": [0, 1]})


def baselines() -> Study:
    """Every method at 50 to 98 % on MNIST-1D, three seeds: the table of docs/results.md; under an hour on two cores."""
    return every_method("mnist1d-mlp", interval=20, rates=MNIST1D_RATES)


def baselines_fashion_mnist() -> Study:
    """Every method at 50 to 98 % on 10,000 images of Fashion-MNIST, three seeds; about two hours on two cores."""
    return every_method("fashion-mnist-lenet", interval=30, rates=FASHION_MNIST_RATES)


def every_method(
    recipe: str, *, interval: int, rates: Mapping[str, float], seeds: Sequence[int] = (0, 1, 2), particles: int = 4
) -> Study:
    """All methods on one recipe, at all SPARSITIES, with as much training each.

    interval: steps between two changes of a changing mask. rates: learning rates of methods that need another one than
    the recipe's, chosen on validation data.
    """
    grids: dict[tuple[float | None, str], dict[str, Any]] = {}
    for name, method in METHODS.items():
        densities = _ON_THE_WAY if method.masks == "iterative" else tuple(1 - sparsity for sparsity in SPARSITIES)
        if method.masks == "once":
            densities = (1.0, *densities)
        key = rates.get(name), method.masks
        grid = grids.setdefault(key, {"seed": list(seeds), "method": [], "densities": [list(map(_rounded, densities))]})
        grid["method"].append(name)
        if key[0] is not None:
            grid["lr"] = key[0]
    settings = {"particles": [particles], "update_interval": interval, "keep_checkpoints": "means"}
    view = CompareOptions(baseline="best", sparsities=SPARSITIES)
    return Study(recipe=recipe, settings=settings, grid=list(grids.values()), name="{method}-{seed}", compare=view)


def _rounded(density: float) -> float:
    return round(density, 6)


# By validation accuracy at 95 %, of three or four rates each, two seeds: benchmarks/studies/baselines-*-rates.toml.
# IMP's and SWAMP's own were chosen before, among as many, and are the recipe's.
MNIST1D_RATES: dict[str, float] = {
    **dict.fromkeys(("random", "random-uniform", "magnitude-init", "sup-tickets", "soup"), 0.6),
    **dict.fromkeys(("one-shot", "one-shot-taylor", "one-shot-fisher"), 0.6),
    **dict.fromkeys(("cyclic", "cyclic-long"), 0.1),
}
FASHION_MNIST_RATES: dict[str, float] = {
    **dict.fromkeys(("random", "random-uniform", "magnitude-init", "snip", "grasp"), 0.3),
    **dict.fromkeys(("set", "rigl", "set-swamp", "set-swamp-own", "sup-tickets"), 0.3),
}
