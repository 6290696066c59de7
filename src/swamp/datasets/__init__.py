"""What is learned: data sets and networks, ready-made."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from swamp.datasets.bundled import digits
from swamp.datasets.cifar import cifar_10, cifar_100
from swamp.datasets.fashion import fashion_mnist
from swamp.datasets.folder import image_folder
from swamp.datasets.problem import DataOptions, Problem, TextOptions
from swamp.datasets.signals import mnist1d, mnist1d_10k
from swamp.datasets.text import (
    GLUE_TASKS,
    movie_reviews,
    movie_reviews_rating,
    movie_reviews_text,
    text_folder,
    text_folder_number,
    text_folder_text,
)
from swamp.datasets.tiny import tiny_imagenet
from swamp.errors import unknown
from swamp.models import NETWORKS, build_network
from swamp.models.pretrained import is_pretrained
from swamp.training.order import Seed

__all__ = [
    "NETWORKS",
    "TASKS",
    "DataOptions",
    "Problem",
    "TaskBuilder",
    "TextOptions",
    "build_network",
    "build_problem",
    "network_for",
    "task_named",
]

TaskBuilder = Callable[[DataOptions, Seed], Problem]

TASKS: dict[str, TaskBuilder] = {
    "mnist1d": mnist1d,
    "mnist1d-10k": mnist1d_10k,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar-10": cifar_10,
    "cifar-100": cifar_100,
    "tiny-imagenet": tiny_imagenet,
    "image-folder": image_folder,
    "movie-reviews": movie_reviews,
    "movie-reviews-rating": movie_reviews_rating,
    "movie-reviews-text": movie_reviews_text,
    "text-folder": text_folder,
    "text-folder-number": text_folder_number,
    "text-folder-text": text_folder_text,
    **GLUE_TASKS,
}
"""Name -> builder; the first line of a builder's docstring says what it is."""


def task_named(name: str) -> TaskBuilder:
    """The builder of the task of that name. Raises SwampError with the nearest names for one that does not exist."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def build_problem(task: str, model: str, options: DataOptions, seed: Seed) -> Problem:
    """The task of that name for the model of that name: texts become the tokens that a pretrained model knows."""
    text = options.text
    if is_pretrained(model) and not text.tokenizer:
        options = replace(options, text=replace(text, tokenizer=model))
    return task_named(task)(options, seed)


def network_for(problem: Problem, model: str) -> nn.Module:
    """`build_network` for that problem; it draws from torch's global generator too."""
    return build_network(model, problem.shape, problem.classes, problem.tokens)
