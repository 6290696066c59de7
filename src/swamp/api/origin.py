"""Origin of a run that was started from Python: what its model and task were, to recognise them in the next call."""

import platform
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp import __version__
from swamp.api.code_text import function_text, module_text, modules_of
from swamp.backends import Backend
from swamp.files import digest
from swamp.runs.config import flattened
from swamp.runs.reference_origin import describe_data, direction
from swamp.training import Task
from swamp.training.module_extra_state import as_tensors
from swamp.training.own_evaluation import ReturnedLoss

_MOST_NAMES = 6
_VERSIONED = ("model.modules", "task.functions", "score", "versions", "higher_is_better")
"""Entries that depend on the versions of Python, torch and swamp: they are compared where these are equal. Directories
of swamp 0.2.0 have none of them, and no "model.frozen"."""
_MANY = ("model.parameters.", "model.modules.")
"""Entries with one value for each parameter or module."""


def describe(model: nn.Module, task: Task, backend: Backend | str | None) -> dict[str, Any]:
    """What a call trains, in plain values.

    Of the model: its class, modules, parameter shapes and frozen parameters, and the digest of its initial weights. Of
    the task: sizes and digests of its data, and its functions, see function_text.
    """
    parameters = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    about: dict[str, Any] = {
        "model": {
            "class": qualified(type(model)),
            "weights": digest(as_tensors(model.state_dict())),
            "parameters": parameters,
            "modules": {name or "model": module_text(module) for name, module in modules_of(model)},
            "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        },
        "task": {name: describe_data(data) for name, data in task.splits.items()},
    }
    about |= direction(task)
    about["task"]["loss"] = loss_name(task)
    if task.own is None:
        about["task"]["metrics"] = sorted(task.metrics)
    else:
        about["task"]["evaluate"] = _name(task.own.evaluate)
    about["task"]["functions"] = {name: function_text(one) for name, one in _functions(task).items()}
    about["versions"] = {"python": platform.python_version(), "torch": torch.__version__, "swamp": __version__}
    inputs = _first_input(task)
    if inputs is not None:
        about["input"] = {"shape": list(inputs.shape[1:]), "dtype": str(inputs.dtype).removeprefix("torch.")}
    if not isinstance(backend, str | None):
        about["backend"] = qualified(type(backend))
    return about


def loss_name(task: Task) -> str:
    """Name of the function that computes the loss."""
    return _name(task.forward.loss if isinstance(task.forward, ReturnedLoss) else task.loss)


def _functions(task: Task) -> dict[str, Any]:
    """The functions of a task and of its data, by name."""
    forward = task.forward.loss if isinstance(task.forward, ReturnedLoss) else task.forward
    found = {"loss": task.loss, "forward": forward, "error": task.error, "combine": task.combine}
    found |= {f"metrics/{name}": metric for name, metric in task.metrics.items()}
    if task.own is not None:
        # Its error may be the name of a metric.
        found |= {f"own {name}": getattr(task.own, name) for name in ("evaluate", "validate", "error")}
    for split, data in task.splits.items():
        held = {name: getattr(data, name, None) for name in ("augment", "normalise", "collate", "to_batch", "source")}
        found |= {f"{split} {name}": function for name, function in held.items() if callable(function)}
    return {name: function for name, function in found.items() if function is not None}


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
    versions = before.get("versions")
    skipped = () if versions == now["versions"] else _VERSIONED if versions else (*_VERSIONED, "model.frozen")
    names = [name for name in {**old, **new} if old.get(name) != new.get(name) and not name.startswith(skipped)]
    found = [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if not name.startswith(_MANY)]
    for many in _MANY:
        some = [name for name in names if name.startswith(many)]
        found += [f"{name}: {old.get(name)} -> {new.get(name)}" for name in some[:_MOST_NAMES]]
        if len(some) > _MOST_NAMES:
            found.append(f"{len(some) - _MOST_NAMES} more {many.split('.')[1]}")
    if names == ["model.weights"]:
        return [
            "the initial weights: seed them (torch.manual_seed(0) before the model is built), or load those of the run "
            f"(model.load_state_dict(safetensors.torch.load_file({initial!r})))"
        ]
    return found


def qualified(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _first_input(task: Task) -> Tensor | None:
    batch: Any = next(iter(task.train.in_order(1)))
    if isinstance(batch, tuple | list) and batch:
        batch = cast("tuple[Any, ...]", batch)[0]
    return batch if isinstance(batch, Tensor) else None


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
