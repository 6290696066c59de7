"""Deep copies of models: leftovers of a forward pass are detached, and what cannot be copied is named."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from swamp.errors import SwampError

M = TypeVar("M", bound=nn.Module)


def copied_model(model: M) -> M:
    """A deep copy of a model, also of one that was used.

    Tensors that a forward pass left in attributes belong to its graph, which torch refuses to copy; the copy has their
    values without the graph.

    Args:
        model: Any module; it is not changed.

    Returns:
        The copy.

    Raises:
        SwampError: For an attribute that cannot be copied, such as a lock or an open file, with its name.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> model.features = model(torch.ones(1, 2))
        >>> copied_model(model).features.requires_grad
        False
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _leftovers(vars(module), 0):
            memo[id(tensor)] = tensor.detach().clone()
    # A __deepcopy__ that builds the model anew draws its initial weights from the global generator.
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        try:
            return copy.deepcopy(model, {**memo})
        except Exception as error:
            raise _refusal(model, memo, error) from error


def _leftovers(value: Any, depth: int) -> Iterator[Tensor]:
    """Tensors with a graph in nested containers."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif depth < 4 and isinstance(value, Mapping):
        for inner in cast("Mapping[Any, Any]", value).values():
            yield from _leftovers(inner, depth + 1)
    elif depth < 4 and isinstance(value, list | tuple | set):
        for inner in cast("list[Any]", value):
            yield from _leftovers(inner, depth + 1)
    elif depth < 4 and type(value).__module__ != "builtins" and not isinstance(value, nn.Module | type):
        yield from _leftovers(getattr(value, "__dict__", None), depth + 1)


def _refusal(model: nn.Module, memo: dict[int, Any], error: Exception) -> SwampError:
    advice = "Remove it, create it in forward, or leave it out in the module's __getstate__ or __deepcopy__."
    modules: dict[str, nn.Module] = dict(cast(Any, model).named_modules())
    for name, module in modules.items():
        inner = {id(child): child for child in module.modules() if child is not module}
        attributes: dict[str, Any] = vars(module)
        for attribute, value in attributes.items():
            try:
                copy.deepcopy(value, {**memo, **inner})
            except Exception as cause:
                where = f"module {name!r}" if name else "the model"
                return SwampError(
                    f"{type(model).__name__} cannot be copied: attribute {attribute!r} of {where} "
                    f"({type(module).__name__}) is of type {type(value).__name__}, which cannot be deep-copied "
                    f"({cause}). {advice}"
                )
    return SwampError(f"{type(model).__name__} cannot be copied: {error}. {advice}")
