"""State dicts of tensors only: extra state of modules that is not a tensor is kept as JSON, never pickled."""

import base64
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp.errors import SwampError

_SUFFIX = "_extra_state"
"""The last part of the names that torch gives to the results of `Module.get_extra_state`."""
_PREFIX = b"swamp-json\0"
_PLAIN = (str, bool, int, float, type(None))


def is_extra_state(name: str) -> bool:
    """Whether an entry of a state dict is the extra state of a module."""
    return name.endswith(_SUFFIX)


def as_tensors(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The state dict with extra state that is not a tensor encoded as a tensor of JSON (uint8); the rest unchanged.

    Raises:
        SwampError: Extra state is of a type that JSON cannot keep.
    """
    if all(isinstance(value, Tensor) for value in state.values()):
        return state
    return {name: value if isinstance(value, Tensor) else _encoded(name, value) for name, value in state.items()}


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`model.load_state_dict(state)`, for states from `as_tensors` too."""
    model.load_state_dict({name: _decoded(value) if is_extra_state(name) else value for name, value in state.items()})


def _encoded(name: str, value: Any) -> Tensor:
    try:
        text = json.dumps(_to_json(value))
    except TypeError as error:
        raise SwampError(
            f"the extra state {name!r} contains {error}, which a run directory cannot store: it holds no pickle. "
            "Return numbers, text, bytes, tensors, and lists, tuples and dicts of these from get_extra_state."
        ) from error
    return torch.frombuffer(bytearray(_PREFIX + text.encode()), dtype=torch.uint8)


def _decoded(value: Tensor) -> Any:
    if value.dtype != torch.uint8 or value.dim() != 1:
        return value
    data = bytes(value.cpu().numpy())
    return _from_json(json.loads(data.removeprefix(_PREFIX))) if data.startswith(_PREFIX) else value


def _to_json(value: Any) -> Any:
    """The value for json.dumps. Raises TypeError, naming the type, for a value that JSON cannot give back."""
    kind = cast("type[Any]", type(value))
    if kind in _PLAIN:
        return value
    if kind is list:
        return [_to_json(one) for one in value]
    if kind is tuple:
        return {"tuple": [_to_json(one) for one in value]}
    if kind in (dict, OrderedDict):
        return {kind.__name__: [[_to_json(key), _to_json(one)] for key, one in value.items()]}
    if kind is bytes:
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, Tensor):
        whole = value.detach().cpu().contiguous()
        data = base64.b64encode(whole.reshape(-1).view(torch.uint8).numpy().tobytes()).decode()
        return {"tensor": [str(whole.dtype).removeprefix("torch."), list(whole.shape), data]}
    raise TypeError(f"a {kind.__name__}")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(one) for one in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = cast("dict[str, Any]", value).items()
    match kind:
        case "tuple":
            return tuple(_from_json(one) for one in content)
        case "bytes":
            return base64.b64decode(content)
        case "tensor":
            dtype, shape, data = getattr(torch, content[0]), content[1], bytearray(base64.b64decode(content[2]))
            return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
        case _:
            pairs = [(_from_json(key), _from_json(one)) for key, one in content]
            return OrderedDict(pairs) if kind == "OrderedDict" else dict(pairs)
