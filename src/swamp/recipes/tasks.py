"""The settings that a task starts from where it is named without a recipe of its own."""

from dataclasses import replace

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
from swamp.runs import RunConfig

_SIGNALS = (mnist1d_mlp, mnist1d_conv)
_PHOTOGRAPHS = (cifar_10_resnet, cifar_10_vgg)
_TEXTS = (movie_reviews_transformer, movie_reviews_minilm)
_TEXT_TO_CONTINUE = (movie_reviews_bytes,)

_BY_TASK = {
    "mnist1d": _SIGNALS,
    "mnist1d-10k": _SIGNALS,
    "digits": (digits_mlp,),
    "fashion-mnist": (fashion_mnist_lenet, fashion_mnist_resnet),
    "cifar-10": _PHOTOGRAPHS,
    "cifar-100": (cifar_100_wrn,),
    "tiny-imagenet": _PHOTOGRAPHS,
    # ResNet-20, as for photographs, with the shorter training: a folder of one's own is small, most often.
    "image-folder": (fashion_mnist_resnet,),
    "movie-reviews-text": _TEXT_TO_CONTINUE,
    "text-folder-text": _TEXT_TO_CONTINUE,
}
"""Task -> recipes with a model and a training that suit its data, the usual one first; other tasks are texts."""


def for_task(task: str, model: str = "", base: RunConfig | None = None) -> RunConfig:
    """The configuration that a run of `task` starts from, with all of the task's examples.

    model: the network asked for; where a recipe of such data has it, the training is that recipe's.
    base: a configuration of another task that was asked for; its method, pruning schedule and seed are kept, and
    where it runs. Its data options, model, training and ticket belong to its own task, and are not.
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
    recipes = [build() for build in _BY_TASK.get(task, _TEXTS)]
    if model.startswith("hf:"):
        # Pretrained as minilm is: its small learning rate, no ticket of its own.
        recipes += [replace(recipe, model=model) for recipe in recipes if recipe.model == "minilm"]
    return next((recipe for recipe in recipes if recipe.model == model), recipes[0])
