"""Ready-made configurations and studies, by name."""

from collections.abc import Callable
from dataclasses import replace

from swamp.datasets import task_named
from swamp.datasets.agents import is_agent
from swamp.errors import unknown
from swamp.recipes import recipes, reinforcement, studies
from swamp.references import is_reference
from swamp.runs.config import RunConfig
from swamp.runs.study import Study

DEFAULT = "mnist1d-mlp"
"""The recipe of `swamp run` without a recipe or task."""

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "mnist1d-mlp": recipes.mnist1d_mlp,
    "mnist1d-conv": recipes.mnist1d_conv,
    "digits-mlp": recipes.digits_mlp,
    "digits-autoencoder": recipes.digits_autoencoder,
    "digits-clustering": recipes.digits_clustering,
    "fashion-autoencoder": recipes.fashion_autoencoder,
    "fashion-semi-supervised": recipes.fashion_semi_supervised,
    "fashion-simclr": recipes.fashion_simclr,
    "breast-cancer-mlp": recipes.breast_cancer_mlp,
    "wine-mlp": recipes.wine_mlp,
    "diabetes-mlp": recipes.diabetes_mlp,
    "mnist1d-lstm": recipes.mnist1d_lstm,
    "italy-power-demand-lstm": recipes.italy_power_demand_lstm,
    "basic-motions-tcn": recipes.basic_motions_tcn,
    "fashion-mnist-lenet": recipes.fashion_mnist_lenet,
    "fashion-mnist-resnet": recipes.fashion_mnist_resnet,
    "cifar-10-resnet": recipes.cifar_10_resnet,
    "cifar-10-vgg": recipes.cifar_10_vgg,
    "cifar-100-wrn": recipes.cifar_100_wrn,
    "movie-reviews-minilm": recipes.movie_reviews_minilm,
    "movie-reviews-transformer": recipes.movie_reviews_transformer,
    "movie-reviews-bytes": recipes.movie_reviews_bytes,
    "cartpole-ppo": reinforcement.cartpole_ppo,
    "acrobot-ppo": reinforcement.acrobot_ppo,
    "lunarlander-dqn": reinforcement.lunarlander_dqn,
    "minatar-breakout-dqn": reinforcement.minatar_breakout_dqn,
    "minatar-asterix-dqn": reinforcement.minatar_asterix_dqn,
    "cartpole-cloning": reinforcement.cartpole_cloning,
}
"""Name -> recipe; `swamp list recipes` prints the first line of its docstring."""

_SIGNALS = (recipes.mnist1d_mlp, recipes.mnist1d_conv, recipes.mnist1d_lstm)
_SERIES = (recipes.basic_motions_tcn, recipes.italy_power_demand_lstm)
_TEXTS = (recipes.movie_reviews_transformer, recipes.movie_reviews_minilm)

_BY_TASK = {
    "mnist1d": _SIGNALS,
    "mnist1d-shifted": _SIGNALS,
    "digits-few-labels": (recipes.fashion_semi_supervised,),
    "cifar-10-few-labels": (recipes.fashion_semi_supervised,),
    "tiny-imagenet": (recipes.cifar_10_resnet, recipes.cifar_10_vgg),
    # ResNet-20 with fewer epochs than for CIFAR-10: most image folders of users are small.
    "image-folder": (recipes.fashion_mnist_resnet,),
    "arrow-head": _SERIES,
    "basic-motions": _SERIES,
    "series": _SERIES,
    "npz": (RunConfig,),
    "npz-number": (RunConfig,),
    "csv": (RunConfig,),
    "csv-number": (RunConfig,),
    "movie-reviews": _TEXTS,
    "text-folder-text": (recipes.movie_reviews_bytes,),
}
"""Task -> recipes whose model and training suit its data, the default first. Other tasks use their own in `RECIPES`, or
`_TEXTS`."""


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


def for_task(task: str, model: str = "", base: RunConfig | None = None) -> RunConfig:
    """The default configuration of a task, with all its examples.

    Args:
        task: Name of a task.
        model: Requested network: if a recipe for such data has it, the training of that recipe is used.
        base: Configuration of another task. Its pruning plan, seed and device are kept; its data options, model,
            training and ticket epochs are replaced, as they were chosen for another task.
    """
    recipe = _recipe_for(task, model)
    data = replace(recipe.data, examples=0)
    own = recipe.task == task and base is None
    found = replace(recipe, recipe=recipe.recipe if own else task, task=task, data=data)
    if base is None:
        return found
    plan = replace(base.plan, ticket_epochs=recipe.plan.ticket_epochs)
    return replace(
        base,
        recipe=task,
        task=task,
        model=recipe.model,
        plan=plan,
        training=recipe.training,
        data=replace(data, workers=base.data.workers),
        threads=recipe.threads,
    )


def _recipe_for(task: str, model: str) -> RunConfig:
    if is_agent(task):
        return reinforcement.cartpole_ppo() if task.startswith("ppo:") else reinforcement.lunarlander_dqn()
    own = tuple(build for build in RECIPES.values() if build().task == task)
    builders = (RunConfig,) if is_reference(task) else _BY_TASK.get(task) or own or _TEXTS
    found = [build() for build in builders]
    if model.startswith("hf:"):
        # Pretrained like minilm: small learning rate, no training before the ticket.
        found += [replace(recipe, model=model) for recipe in found if recipe.model == "minilm"]
    return next((recipe for recipe in found if recipe.model == model), found[0])


STUDIES: dict[str, Callable[[], Study]] = {
    "demo": studies.demo,
    "baselines": studies.baselines,
    "baselines-fashion-mnist": studies.baselines_fashion_mnist,
}
"""Name -> study; `swamp list studies` prints the first line of its docstring."""
