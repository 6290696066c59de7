"""A task, or a network, made by a function of the user."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp.datasets.problem import DataOptions, Problem
from swamp.errors import SwampError
from swamp.references import call, resolve
from swamp.training.rng import Seed
from swamp.training.task import Task


def referenced_problem(reference: str, options: DataOptions, seed: Seed) -> Problem:
    """The problem that the function returns: a `Problem`, or a `Task`, of which the shapes are read from the data.

    The function may take `seed` (a Seed), `options` (DataOptions) and `folder` (text).

    Raises:
        SwampError: The function cannot be imported, fails, or returns anything else.
    """
    offered = {"seed": seed, "options": options, "folder": options.folder}
    made = call(resolve(reference, "task"), reference, "task", offered)
    if isinstance(made, Problem):
        return made
    if not isinstance(made, Task):
        raise SwampError(
            f"task {reference}: the function returned {_kind(made)}, expected a swamp.Task. End it with: "
            "return swamp.Task.of(train=..., test=...)"
        )
    return Problem(made, *_sizes(made))


def referenced_network(reference: str, problem: Problem) -> nn.Module:
    """The network that the function or class makes. Its random weights are drawn from torch's global generator.

    The function may take `shape` (of one input), `classes` (number of outputs), `tokens` and `problem`.

    Raises:
        SwampError: The function cannot be imported, fails, or returns anything but a module with parameters.
    """
    offered = {"shape": problem.shape, "classes": problem.classes, "tokens": problem.tokens, "problem": problem}
    made = call(resolve(reference, "model"), reference, "model", offered)
    if not isinstance(made, nn.Module):
        raise SwampError(f"model {reference}: the function returned {_kind(made)}, expected a torch.nn.Module.")
    if not any(True for _ in made.parameters()):
        raise SwampError(f"model {reference}: {type(made).__name__} has no parameters, so that nothing can be pruned.")
    return made


def _sizes(task: Task) -> tuple[tuple[int, ...], int]:
    """Shape of one input and number of outputs, for networks of swamp; () and 0 where the data do not say."""
    try:
        batch: Any = next(iter(task.require_outputs("a network by name").in_order(64)))
    except (StopIteration, AttributeError, TypeError, SwampError):
        return (), 0
    if not (isinstance(batch, tuple | list) and len(cast("tuple[Any, ...]", batch)) == 2):
        return (), 0
    inputs, targets = cast("tuple[Any, Any]", batch)
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        return (), 0
    shape = tuple(inputs.shape[1:])
    if targets.is_floating_point():
        return shape, targets[0].numel()
    return shape, _classes(task)


def _classes(task: Task) -> int:
    largest = 0
    for data in task.splits.values():
        known = getattr(data, "targets", None)
        batches = [known] if isinstance(known, Tensor) else (batch[1] for batch in data.in_order(1024))
        largest = max([largest, *(int(torch.as_tensor(targets).max()) for targets in batches)])
    return largest + 1


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
