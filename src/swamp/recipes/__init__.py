"""Ready-made configurations and studies, by name."""

from collections.abc import Callable

from swamp.datasets import task_named
from swamp.errors import unknown
from swamp.recipes.recipes import (
    basic_motions_tcn,
    breast_cancer_mlp,
    cifar_10_resnet,
    cifar_10_vgg,
    cifar_100_wrn,
    diabetes_mlp,
    digits_autoencoder,
    digits_clustering,
    digits_mlp,
    fashion_autoencoder,
    fashion_mnist_lenet,
    fashion_mnist_resnet,
    fashion_semi_supervised,
    fashion_simclr,
    italy_power_demand_lstm,
    mnist1d_conv,
    mnist1d_lstm,
    mnist1d_mlp,
    movie_reviews_bytes,
    movie_reviews_minilm,
    movie_reviews_transformer,
    wine_mlp,
)
from swamp.recipes.reinforcement import (
    acrobot_ppo,
    cartpole_cloning,
    cartpole_ppo,
    lunarlander_dqn,
    minatar_asterix_dqn,
    minatar_breakout_dqn,
)
from swamp.recipes.studies import baselines, baselines_fashion_mnist, demo
from swamp.recipes.tasks import for_task
from swamp.runs.config import RunConfig
from swamp.runs.study import Study

DEFAULT = "mnist1d-mlp"
"""The recipe of `swamp run` without a recipe or task."""

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "mnist1d-mlp": mnist1d_mlp,
    "mnist1d-conv": mnist1d_conv,
    "digits-mlp": digits_mlp,
    "digits-autoencoder": digits_autoencoder,
    "digits-clustering": digits_clustering,
    "fashion-autoencoder": fashion_autoencoder,
    "fashion-semi-supervised": fashion_semi_supervised,
    "fashion-simclr": fashion_simclr,
    "breast-cancer-mlp": breast_cancer_mlp,
    "wine-mlp": wine_mlp,
    "diabetes-mlp": diabetes_mlp,
    "mnist1d-lstm": mnist1d_lstm,
    "italy-power-demand-lstm": italy_power_demand_lstm,
    "basic-motions-tcn": basic_motions_tcn,
    "fashion-mnist-lenet": fashion_mnist_lenet,
    "fashion-mnist-resnet": fashion_mnist_resnet,
    "cifar-10-resnet": cifar_10_resnet,
    "cifar-10-vgg": cifar_10_vgg,
    "cifar-100-wrn": cifar_100_wrn,
    "movie-reviews-minilm": movie_reviews_minilm,
    "movie-reviews-transformer": movie_reviews_transformer,
    "movie-reviews-bytes": movie_reviews_bytes,
    "cartpole-ppo": cartpole_ppo,
    "acrobot-ppo": acrobot_ppo,
    "lunarlander-dqn": lunarlander_dqn,
    "minatar-breakout-dqn": minatar_breakout_dqn,
    "minatar-asterix-dqn": minatar_asterix_dqn,
    "cartpole-cloning": cartpole_cloning,
}
"""Name -> recipe; `swamp list recipes` prints the first line of its docstring."""


def configuration(recipe: str = "", task: str = "", model: str = "") -> RunConfig:
    """The configuration of a recipe or task, before other options change it.

    Args:
        recipe: Name of a recipe; empty: the recipe of the task, or the default recipe without a task.
        task: Name of a task; if it is not the task of the recipe, data options, model and training are replaced.
        model: Requested network. It selects the training of a task; the model of the result is not set to it.

    Returns:
        A configuration of `task`, or of the task of the recipe if `task` is empty.

    Raises:
        SwampError: No recipe or task has this name; the message suggests similar names.
    """
    if task:
        task_named(task)
    named = recipe_named(recipe or DEFAULT)()
    if task in ("", named.task):
        return named
    return for_task(task, model, named if recipe else None)


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
"""Name -> study; `swamp list studies` prints the first line of its docstring."""
