"""Configurations and studies that work, by name."""

from collections.abc import Callable

from swamp.errors import unknown
from swamp.recipes.recipes import (
    cifar_10_resnet,
    cifar_10_vgg,
    cifar_100_wrn,
    digits_mlp,
    fashion_mnist_lenet,
    fashion_mnist_resnet,
    mnist1d_conv,
    mnist1d_mlp,
    movie_reviews_bytes,
    movie_reviews_minilm,
    movie_reviews_transformer,
)
from swamp.recipes.studies import baselines, baselines_fashion_mnist, demo
from swamp.runs import RunConfig, Study

DEFAULT = "mnist1d-mlp"
"""The recipe of `swamp run` without a name."""

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "mnist1d-mlp": mnist1d_mlp,
    "mnist1d-conv": mnist1d_conv,
    "digits-mlp": digits_mlp,
    "fashion-mnist-lenet": fashion_mnist_lenet,
    "fashion-mnist-resnet": fashion_mnist_resnet,
    "cifar-10-resnet": cifar_10_resnet,
    "cifar-10-vgg": cifar_10_vgg,
    "cifar-100-wrn": cifar_100_wrn,
    "movie-reviews-minilm": movie_reviews_minilm,
    "movie-reviews-transformer": movie_reviews_transformer,
    "movie-reviews-bytes": movie_reviews_bytes,
}
"""Name -> recipe; the first line of a recipe's docstring says what it is."""


def recipe_named(name: str) -> Callable[[], RunConfig]:
    """Look a recipe up by name. Raises SwampError with suggestions."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]


STUDIES: dict[str, Callable[[], Study]] = {
    "demo": demo,
    "baselines": baselines,
    "baselines-fashion-mnist": baselines_fashion_mnist,
}
"""Name -> study; the first line of a study's docstring says what it is."""


__all__ = ["DEFAULT", "RECIPES", "STUDIES", "recipe_named"]
