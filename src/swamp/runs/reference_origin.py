"""Code and data of the user: what config.json records of them, and how a command finds them again."""

import hashlib
from dataclasses import replace
from shlex import quote
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import _pytree

from swamp.batches import tensors_of
from swamp.datasets.problem import Problem
from swamp.datasets.referenced import referenced_network
from swamp.errors import SwampError, final_line, warn
from swamp.files import digest, load_tensors
from swamp.references import PYTHON_PREFIX, is_reference, source_digest
from swamp.runs.config import RunConfig
from swamp.runs.directory import RunDirectory
from swamp.runs.read import read_origin
from swamp.training import Task, TensorData
from swamp.training.data import Data
from swamp.training.module_extra_state import as_tensors, load_state

INITIAL = "initial.safetensors"
"""File of a run that was started from Python: the weights of the model that was passed."""


def direction(task: Task) -> dict[str, bool]:
    """Whether a larger first metric is better, for reports; empty where its name decides."""
    higher = None if task.own is None else task.own.higher_is_better
    return {} if higher is None else {"higher_is_better": higher}


def reference_origin(config: RunConfig, model: nn.Module, task: Task) -> dict[str, Any]:
    """Digests of the user's data; and of the files of the user's functions, and the initial weights with these."""
    data = {name: describe_data(data) for name, data in task.splits.items()} if config.data.folder else {}
    of_data = {"data": data} if data else {}
    named = {"model": config.model, "task": config.task, "optimizer": config.training.optimizer}
    own = {what: name for what, name in named.items() if is_reference(name)}
    if not own:
        return of_data
    sources = {what: {"name": name, "source": source_digest(name, what)} for what, name in own.items()}
    return {**of_data, **sources, "initial_weights": digest(as_tensors(model.state_dict())), **direction(task)}


def verify_references(directory: RunDirectory, config: RunConfig, model: nn.Module, task: Task) -> None:
    """Warn of functions whose file was changed since the run began.

    Raises SwampError if the user's data or the initial weights differ from those with which the run began.
    """
    before, now = read_origin(directory), reference_origin(config, model, task)
    if "data" in before and before["data"] != now["data"]:
        raise SwampError(
            f"{directory.path} cannot be continued: the data in {config.data.folder} were changed since this run "
            "began. Put the former data back, or start another run with: "
            f"swamp run --config {quote(str(directory.config))} --out NEW"
        )
    functions = {what: now[what] for what in ("model", "task", "optimizer") if what in now}
    changed = [f"{what} {own['name']}" for what, own in functions.items() if own != before.get(what)]
    files = f"the file of {' and of '.join(changed)} was changed since this run began"
    if before.get("initial_weights") != now.get("initial_weights"):
        why = files if changed else "the model's function gives other initial weights than when this run began"
        raise SwampError(
            f"{directory.path} cannot be continued: {why}, and its initial weights differ. Put the former code back, "
            f"or start another run with: swamp run --config {quote(str(directory.config))} --out NEW"
        )
    if changed:
        warn(f"{files}: the rest of the run uses the new code.")


def describe_data(data: Data) -> dict[str, Any]:
    """Type, number of examples and digest of the data of a split; of data not in memory, of their first batch."""
    about: dict[str, Any] = {"type": type(data).__name__, "examples": len(data)}
    if isinstance(data, TensorData):
        named = {f"inputs/{name}": value for name, value in tensors_of(data.inputs).items()}
        about["digest"] = digest({**named, "targets": data.targets})
    else:
        about["digest"] = _digest_of_batch(next(iter(data.in_order(min(32, len(data))))))
    return about


def _digest_of_batch(batch: Any) -> str:
    # The first batch stands for data that may not fit in memory.
    leaves = _pytree.tree_leaves(batch)
    tensors = {str(place): leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    others = [repr(leaf) for leaf in leaves if isinstance(leaf, str | bytes | int | float | bool)]
    return hashlib.sha256(f"{digest(tensors)} {others}".encode()).hexdigest()[:16]


def with_references(directory: RunDirectory, config: RunConfig, model: str, task: str) -> RunConfig:
    """The configuration of a run with other functions for the model and the task; empty names change nothing.

    Raises SwampError for names that are no references, and if a run that was started from Python has none.
    """
    for option, name in {"model": model, "task": task}.items():
        if name and not is_reference(name):
            raise SwampError(f"--{option} takes package.module:function or file.py:function, got {name!r}.")
    found = replace(config, model=model or config.model, task=task or config.task)
    options = {"model": found.model, "task": found.task}
    missing = [f"--{option} package.module:function" for option, name in options.items() if _is_object(name)]
    if missing:
        origin = read_origin(directory)
        raise SwampError(
            f"{directory.path} was started from Python, with objects of that program (the model is a "
            f"{origin['model']['class']}). Name the functions that make them: {' '.join(missing)}"
        )
    return found


def load_initial_weights(directory: RunDirectory, model: nn.Module, reference: str) -> None:
    """Load the initial weights of a run that was started from Python into the model that a function made.

    Raises SwampError if they do not fit, as the function makes another model.
    """
    path = directory.path / INITIAL
    if not path.exists():
        return
    weights, _ = load_tensors(path)
    try:
        load_state(model, weights)
    except RuntimeError as error:
        raise SwampError(f"model {reference} is not the model of {directory.path}: {final_line(error)}") from error


def python_network(directory: RunDirectory, reference: str) -> nn.Module:
    """The model of a run that was started from Python, made by a function, with the initial weights of the run."""
    if not is_reference(reference):
        raise SwampError(
            f"{directory.path} was started from Python: its model is a {read_origin(directory)['model']['class']} of "
            "that program. Name a function or class that makes it: --model package.module:function"
        )
    shape = read_origin(directory).get("input", {}).get("shape", ())
    model = referenced_network(reference, Problem(cast(Any, None), tuple(shape), 0))
    load_initial_weights(directory, model, reference)
    return model


def _is_object(name: str) -> bool:
    return name.startswith(PYTHON_PREFIX)
