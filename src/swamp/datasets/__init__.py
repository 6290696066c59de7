"""Ready-made tasks and networks."""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial

from torch import nn

from swamp.datasets import agents, arrays, bundled, cifar, cloning, fashion, images, text, time_series, unlabelled
from swamp.datasets.problem import DataOptions, LabelOptions, Problem, TextOptions
from swamp.datasets.referenced import referenced_network, referenced_problem
from swamp.datasets.text import GLUE_TASKS
from swamp.errors import SwampError, shortened, unknown
from swamp.fields import changed_fields
from swamp.models import build_network
from swamp.models.language import is_pretrained
from swamp.references import PYTHON_PREFIX, is_reference, parameters_of, resolve
from swamp.training.rng import Seed

__all__ = ["build_problem"]

TaskBuilder = Callable[[DataOptions, Seed], Problem]

TASKS: dict[str, TaskBuilder] = {
    "mnist1d": bundled.mnist1d,
    "mnist1d-10k": bundled.mnist1d_10k,
    "mnist1d-shifted": bundled.mnist1d_shifted,
    "digits": bundled.digits,
    "fashion-mnist": fashion.fashion_mnist,
    "cifar-10": cifar.cifar_10,
    "cifar-100": cifar.cifar_100,
    "tiny-imagenet": images.tiny_imagenet,
    "image-folder": images.image_folder,
    "digits-reduction": unlabelled.digits_reduction,
    "fashion-reduction": unlabelled.fashion_reduction,
    "digits-clusters": unlabelled.digits_clusters,
    "digits-few-labels": unlabelled.digits_few_labels,
    "fashion-few-labels": unlabelled.fashion_few_labels,
    "cifar-10-few-labels": unlabelled.cifar_10_few_labels,
    "fashion-views": unlabelled.fashion_views,
    "movie-reviews": text.movie_reviews,
    "movie-reviews-rating": text.movie_reviews_rating,
    "movie-reviews-text": text.movie_reviews_text,
    "text-folder": text.text_folder,
    "text-folder-number": text.text_folder_number,
    "text-folder-text": text.text_folder_text,
    "breast-cancer": bundled.breast_cancer,
    "wine": bundled.wine,
    "diabetes": bundled.diabetes,
    "italy-power-demand": time_series.italy_power_demand,
    "arrow-head": time_series.arrow_head,
    "basic-motions": time_series.basic_motions,
    "series": time_series.series,
    "npz": arrays.npz,
    "npz-number": arrays.npz_number,
    "csv": arrays.csv_table,
    "csv-number": arrays.csv_number,
    **GLUE_TASKS,
    "cartpole-ppo": agents.ppo_on_cartpole,
    "acrobot-ppo": agents.ppo_on_acrobot,
    "lunarlander-dqn": agents.dqn_on_lunarlander,
    "minatar-breakout-dqn": agents.dqn_on_breakout,
    "minatar-asterix-dqn": agents.dqn_on_asterix,
    "cartpole-cloning": cloning.cartpole_clone,
}
"""Name -> builder; `swamp list tasks` prints the first line of its docstring."""

_FEW_LABELS = ("digits-few-labels", "fashion-few-labels", "cifar-10-few-labels")
_TABLES = ("text-folder", "text-folder-number", *GLUE_TASKS)
_TEXTS = ("movie-reviews", "movie-reviews-rating", "movie-reviews-text", "text-folder-text", *_TABLES)
_IN_FILES = (
    *("csv", "csv-number", "npz", "npz-number", "image-folder", "text-folder-text", *_TABLES, "series"),
    *("italy-power-demand", "arrow-head", "basic-motions", "tiny-imagenet", "cifar-10", "cifar-100"),
    *("cifar-10-few-labels", "fashion-mnist", "fashion-reduction", "fashion-few-labels", "fashion-views"),
)
_AUGMENTED = (
    *("mnist1d", "mnist1d-10k", "mnist1d-shifted", "digits", "digits-reduction", "digits-clusters", "fashion-mnist"),
    *("fashion-reduction", "fashion-views", "cifar-10", "cifar-100", "tiny-imagenet", "image-folder", *_FEW_LABELS),
)
READ_BY: dict[str, tuple[str, ...]] = {
    "folder": _IN_FILES,
    "augment": _AUGMENTED,
    "workers": ("image-folder",),
    "tokenizer": _TEXTS,
    "length": _TEXTS,
    "columns": (*_TABLES, "text-folder-text"),
    "label": ("csv", "csv-number", *_TABLES),
    "neutral": ("movie-reviews",),
    "labelled": _FEW_LABELS,
    "objective": _FEW_LABELS,
}
"""Field of the data options -> tasks that read it. Others are read by all, or refused by the task itself."""


def task_named(name: str) -> TaskBuilder:
    """The builder of a task, from its name or a reference to a function. Raises SwampError with suggestions."""
    if agents.is_agent(name):
        return partial(agents.agent_task, name)
    if is_reference(name):
        return partial(referenced_problem, name)
    if name.startswith(PYTHON_PREFIX):
        raise SwampError(
            "the task and the model of this run are objects of a Python program. Name functions that make them: "
            "--model package.module:function --task package.module:function"
        )
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def unread_options(task: str) -> dict[str, str]:
    """Fields of the data options that a task does not read, and why, as the end of a sentence about the option."""
    if is_reference(task):
        taken = parameters_of(resolve(task, "task"))
        every = [one.name for kind in (DataOptions, TextOptions, LabelOptions) for one in fields(kind)]
        names = () if "options" in taken else [name for name in every if name not in taken]
        through = {name: "folder" if name == "folder" else "options" for name in names}
        return {name: f"the function {task} has no parameter {parameter!r}" for name, parameter in through.items()}
    return {
        name: f"{task} does not read it; tasks that do: {shortened(tasks, 9)}"
        for name, tasks in READ_BY.items()
        if task not in tasks
    }


def refuse_unread(task: str, given: Iterable[str]) -> None:
    """Raise SwampError for the first of the `given` options (their fields) that `task` does not read."""
    unread = unread_options(task)
    for name in given:
        if name in unread:
            raise SwampError(f"{name} has no effect: {unread[name]}. Leave it out, or choose another --task.")


def build_problem(task: str, model: str, options: DataOptions, seed: Seed) -> Problem:
    """Build a ready-made task for a model.

    Args:
        task: A name in `TASKS`.
        model: A name as for `build_network`. The tokenizer of a pretrained model is used for its texts.
        options: Which data to use.
        seed: Draws the validation split.

    Returns:
        The problem: task, input shape, number of outputs and tokens.

    Raises:
        SwampError: For an unknown task, and for data that is missing or damaged.

    Examples:
        >>> problem = build_problem("digits", "mlp-20", DataOptions(validation=0.1), Seed(0))
        >>> problem.shape, problem.classes, len(problem.task.train)
        ((1, 8, 8), 10, 1294)
    """
    if is_pretrained(model) and not options.text.tokenizer:
        options = replace(options, text=replace(options.text, tokenizer=model))
    build = task_named(task)
    # A task of the user's own function may use any option.
    if task in TASKS:
        refuse_unread(task, changed_fields(options.labels))
    problem = build(options, seed)
    if options.classes and not problem.chosen:
        raise SwampError(f"the task {task} has no choice of classes. Leave classes out.")
    return problem


def network_for(problem: Problem, model: str) -> nn.Module:
    """The network that `model` names, or that the function makes to which it refers, for the data of `problem`."""
    if is_reference(model):
        return referenced_network(model, problem)
    if not problem.shape:
        raise SwampError(
            f"the task does not state the shape of its inputs, which {model} needs. Name a function that makes the "
            "network (--model package.module:function), or let the task's function return a swamp.datasets.Problem."
        )
    return build_network(model, problem.shape, problem.classes, problem.tokens)
