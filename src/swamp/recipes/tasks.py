"""Settings of a task that is given without a recipe."""

from dataclasses import replace

from swamp.datasets.agents import is_agent
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
from swamp.references import is_reference
from swamp.runs.config import RunConfig

_SIGNALS = (mnist1d_mlp, mnist1d_conv, mnist1d_lstm)
_SERIES = (basic_motions_tcn, italy_power_demand_lstm)
_PHOTOGRAPHS = (cifar_10_resnet, cifar_10_vgg)
_TEXTS = (movie_reviews_transformer, movie_reviews_minilm)
_TEXT_TO_CONTINUE = (movie_reviews_bytes,)

_BY_TASK = {
    "mnist1d": _SIGNALS,
    "mnist1d-10k": _SIGNALS,
    "mnist1d-shifted": _SIGNALS,
    "digits": (digits_mlp,),
    "digits-reduction": (digits_autoencoder,),
    "digits-clusters": (digits_clustering,),
    "fashion-reduction": (fashion_autoencoder,),
    "digits-few-labels": (fashion_semi_supervised,),
    "fashion-few-labels": (fashion_semi_supervised,),
    "cifar-10-few-labels": (fashion_semi_supervised,),
    "fashion-views": (fashion_simclr,),
    "fashion-mnist": (fashion_mnist_lenet, fashion_mnist_resnet),
    "cifar-10": _PHOTOGRAPHS,
    "cifar-100": (cifar_100_wrn,),
    "tiny-imagenet": _PHOTOGRAPHS,
    # ResNet-20 with fewer epochs than for CIFAR-10: most image folders of users are small.
    "image-folder": (fashion_mnist_resnet,),
    "breast-cancer": (breast_cancer_mlp,),
    "wine": (wine_mlp,),
    "diabetes": (diabetes_mlp,),
    "italy-power-demand": (italy_power_demand_lstm,),
    "arrow-head": _SERIES,
    "basic-motions": _SERIES,
    "series": _SERIES,
    "npz": (RunConfig,),
    "npz-number": (RunConfig,),
    "csv": (RunConfig,),
    "csv-number": (RunConfig,),
    "movie-reviews-text": _TEXT_TO_CONTINUE,
    "text-folder-text": _TEXT_TO_CONTINUE,
    "cartpole-ppo": (cartpole_ppo,),
    "acrobot-ppo": (acrobot_ppo,),
    "lunarlander-dqn": (lunarlander_dqn,),
    "minatar-breakout-dqn": (minatar_breakout_dqn,),
    "minatar-asterix-dqn": (minatar_asterix_dqn,),
    "cartpole-cloning": (cartpole_cloning,),
}
"""Task -> recipes whose model and training suit its data, the default first. Other tasks use `_TEXTS`."""


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
        return cartpole_ppo() if task.startswith("ppo:") else lunarlander_dqn()
    recipes = [build() for build in ((RunConfig,) if is_reference(task) else _BY_TASK.get(task, _TEXTS))]
    if model.startswith("hf:"):
        # Pretrained like minilm: small learning rate, no training before the ticket.
        recipes += [replace(recipe, model=model) for recipe in recipes if recipe.model == "minilm"]
    return next((recipe for recipe in recipes if recipe.model == model), recipes[0])
