"""Origin of a run that was started from Python: what its model and task were, to recognise them in the next call."""

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from swamp.backends import Backend
from swamp.batches import tensors_of
from swamp.files import digest
from swamp.runs.config import flattened
from swamp.training import Task, TensorData
from swamp.training.data import Data
from swamp.training.module_extra_state import as_tensors
from swamp.training.own_evaluation import ReturnedLoss

_MOST_NAMES = 6


def describe(model: nn.Module, task: Task, backend: Backend | str | None) -> dict[str, Any]:
    """Class, parameter shapes and digest of the initial weights of a model; sizes and digests of a task's data."""
    parameters = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    about: dict[str, Any] = {
        "model": {
            "class": qualified(type(model)),
            "weights": digest(as_tensors(model.state_dict())),
            "parameters": parameters,
        },
        "task": {name: _describe_data(data) for name, data in task.splits.items()},
    }
    about["task"]["loss"] = loss_name(task)
    if task.own is None:
        about["task"]["metrics"] = sorted(task.metrics)
    else:
        about["task"]["evaluate"] = _name(task.own.evaluate)
    inputs = _first_input(task)
    if inputs is not None:
        about["input"] = {"shape": list(inputs.shape[1:]), "dtype": str(inputs.dtype).removeprefix("torch.")}
    if not isinstance(backend, str | None):
        about["backend"] = qualified(type(backend))
    return about


def loss_name(task: Task) -> str:
    """Name of the function that computes the loss."""
    return _name(task.forward.loss if isinstance(task.forward, ReturnedLoss) else task.loss)


def example_inputs(about: Mapping[str, Any], examples: int = 8) -> Tensor | None:
    """Random inputs of the shape and type that `describe` recorded; None where the inputs are not one tensor."""
    if "input" not in about:
        return None
    dtype = getattr(torch, about["input"]["dtype"])
    shape = [examples, *about["input"]["shape"]]
    if dtype.is_floating_point:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return torch.zeros(shape, dtype=dtype)


def origin_differences(before: Mapping[str, Any], now: Mapping[str, Any], initial: str) -> list[str]:
    """What differs between two origins, in words. initial: file with the initial weights of the first."""
    old, new = flattened(before), flattened(now)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    shapes = [name for name in names if name.startswith("model.parameters.")]
    found = [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if name not in shapes]
    found += [f"{name}: {old.get(name)} -> {new.get(name)}" for name in shapes[:_MOST_NAMES]]
    if len(shapes) > _MOST_NAMES:
        found.append(f"{len(shapes) - _MOST_NAMES} more parameters")
    if names == ["model.weights"]:
        return [
            "the initial weights: seed them (torch.manual_seed(0) before the model is built), or load those of the run "
            f"(model.load_state_dict(safetensors.torch.load_file({initial!r})))"
        ]
    return found


def qualified(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _describe_data(data: Data) -> dict[str, Any]:
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


def _first_input(task: Task) -> Tensor | None:
    batch: Any = next(iter(task.train.in_order(1)))
    if isinstance(batch, tuple | list) and batch:
        batch = cast("tuple[Any, ...]", batch)[0]
    return batch if isinstance(batch, Tensor) else None


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
