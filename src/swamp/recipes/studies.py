"""Ready-made studies. A study is a function, like a recipe; its runs are stored in studies/NAME."""

from collections.abc import Mapping
from typing import Any

from swamp.algorithms import METHODS
from swamp.runs.study import CompareOptions, Study

SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.98)
"""Sparsities that papers usually report."""
_ON_THE_WAY = (1.0, 0.71, 0.5, 0.35, 0.25, 0.16, 0.1, 0.05, 0.02)
"""Densities of an iterative run; they include those of SPARSITIES."""


def demo() -> Study:
    """IMP and SWAMP on the digits, two seeds each: one minute, an example of a study."""
    return Study(recipe="digits-mlp", grid={"method": ["imp", "swamp"], "seed": [0, 1]})


def baselines() -> Study:
    """Every method at 50 to 98 % on MNIST-1D (docs/explanation/results_baselines.md), three seeds; under an hour."""
    return _every_method("mnist1d-mlp", interval=20, rates=MNIST1D_RATES)


def baselines_fashion_mnist() -> Study:
    """Every method at 50 to 98 % on 10,000 images of Fashion-MNIST, three seeds; about two hours on two cores."""
    return _every_method("fashion-mnist-lenet", interval=30, rates=FASHION_MNIST_RATES)


def _every_method(recipe: str, *, interval: int, rates: Mapping[str, float]) -> Study:
    """All methods on one recipe, at all SPARSITIES, with three seeds and four particles.

    interval: steps between two updates of a dynamic mask. rates: learning rates, chosen on validation data, of methods
    that do not use the learning rate of the recipe.
    """
    grids: dict[tuple[float | None, str], dict[str, Any]] = {}
    for name, method in METHODS.items():
        densities = _ON_THE_WAY if method.masks == "iterative" else tuple(1 - sparsity for sparsity in SPARSITIES)
        if method.masks == "once":
            densities = (1.0, *densities)
        key = rates.get(name), method.masks
        grid = grids.setdefault(key, {"seed": [0, 1, 2], "method": [], "densities": [list(map(_rounded, densities))]})
        grid["method"].append(name)
        if key[0] is not None:
            grid["lr"] = key[0]
    settings = {"particles": [4], "update_interval": interval, "keep_checkpoints": "means"}
    view = CompareOptions(baseline="best", sparsities=SPARSITIES)
    return Study(recipe=recipe, settings=settings, grid=list(grids.values()), name="{method}-{seed}", compare=view)


def _rounded(density: float) -> float:
    return round(density, 6)


# Best validation accuracy at 95 % sparsity among three or four rates, two seeds: benchmarks/studies/
# baselines-*-rates.toml. The rate of the recipe was chosen for IMP and SWAMP in the same way.
MNIST1D_RATES: dict[str, float] = {
    **dict.fromkeys(("random", "random-uniform", "magnitude-init", "sup-tickets", "soup"), 0.6),
    **dict.fromkeys(("one-shot", "one-shot-taylor", "one-shot-fisher"), 0.6),
    **dict.fromkeys(("cyclic", "cyclic-long"), 0.1),
}
FASHION_MNIST_RATES: dict[str, float] = {
    **dict.fromkeys(("random", "random-uniform", "magnitude-init", "snip", "grasp"), 0.3),
    **dict.fromkeys(("set", "rigl", "set-swamp", "set-swamp-own", "sup-tickets"), 0.3),
}
