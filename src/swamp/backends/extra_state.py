"""Extra state that travels with a ticket or a particle: a discriminator, a replay buffer, an EMA, an optimizer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from swamp.errors import CorruptFile, SwampError

ExtraState = dict[str, Any]
"""Names to tensors, numbers, strings, and dicts, lists and tuples of them, as state dicts are."""

_PREFIX = "extra-state:"
_METADATA = "extra_state"


def encoded(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Copies of the tensors of a state by name, and its structure as JSON; ({}, "") for an empty state.

    Raises:
        SwampError: For a value that is neither a tensor nor plain, with its name.
    """
    if not state:
        return {}, ""
    tensors: dict[str, Tensor] = {}
    structure = _structure(dict(state), "job.state", tensors)
    return tensors, json.dumps(structure)


def decoded(tensors: Mapping[str, Tensor], structure: str) -> ExtraState:
    """The state that `encoded` described, with copies of the tensors."""
    return _value(json.loads(structure), tensors) if structure else {}


def copied_state(state: Mapping[str, Any]) -> ExtraState:
    """A copy. Raises as `encoded`."""
    return decoded(*encoded(state))


def with_state(
    weights: Mapping[str, Tensor], metadata: Mapping[str, str], state: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that has the state beside the weights."""
    tensors, structure = encoded(state)
    stored = {**weights, **{f"{_PREFIX}{name}": value for name, value in tensors.items()}}
    return stored, {**metadata, **({_METADATA: structure} if structure else {})}


def without_state(
    stored: Mapping[str, Tensor], metadata: Mapping[str, str], path: object
) -> tuple[dict[str, Tensor], ExtraState]:
    """Weights and state of a file that `with_state` described. Raises CorruptFile for anything else."""
    structure = metadata.get(_METADATA, "")
    if not structure:
        return dict(stored), {}
    tensors = {name.removeprefix(_PREFIX): value for name, value in stored.items() if name.startswith(_PREFIX)}
    weights = {name: value for name, value in stored.items() if not name.startswith(_PREFIX)}
    try:
        return weights, decoded(tensors, structure)
    except (ValueError, LookupError, TypeError) as error:
        raise CorruptFile(f"{path} is damaged: its extra state is not whole ({error}).") from error


def _structure(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value).items()
        wrong = [key for key, _ in entries if not isinstance(key, str | int)]
        if wrong:
            raise SwampError(f"{where} has the key {wrong[0]!r}: keys of extra state are strings or integers.")
        return {"dict": [[key, _structure(inner, f"{where}[{key!r}]", tensors)] for key, inner in entries]}
    if isinstance(value, list | tuple):
        parts = cast("Sequence[Any]", value)
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_structure(inner, f"{where}[{i}]", tensors) for i, inner in enumerate(parts)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise SwampError(
        f"{where} is of type {type(value).__name__}: extra state consists of tensors, numbers, strings, and dicts and "
        "lists of them. Give a module's or optimizer's state_dict()."
    )


def _value(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    ((kind, content),) = structure.items()
    match kind:
        case "tensor":
            return tensors[content].clone()
        case "dict":
            return {key: _value(inner, tensors) for key, inner in content}
        case "list":
            return [_value(inner, tensors) for inner in content]
        case "tuple":
            return tuple(_value(inner, tensors) for inner in content)
        case "value":
            return content
        case _:
            raise ValueError(f"unknown kind {kind!r}")
