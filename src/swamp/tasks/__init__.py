"""What is learned: data sets and networks, ready-made."""

from collections.abc import Callable

from swamp.errors import unknown
from swamp.tasks.bundled import digits
from swamp.tasks.cifar import cifar_10, cifar_100
from swamp.tasks.fashion import fashion_mnist
from swamp.tasks.folder import image_folder
from swamp.tasks.networks import NETWORKS, build_network
from swamp.tasks.problem import DataOptions, Problem
from swamp.tasks.signals import mnist1d, mnist1d_10k
from swamp.tasks.tiny import tiny_imagenet
from swamp.training.order import Seed

__all__ = ["NETWORKS", "TASKS", "DataOptions", "Problem", "TaskBuilder", "build_network", "task_named"]

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
}
"""Name -> builder; the first line of a builder's docstring says what it is."""


def task_named(name: str) -> TaskBuilder:
    """The builder of the task of that name. Raises SwampError with the nearest names for one that does not exist."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
