"""A model with flat inputs and outputs: how its arguments and outputs are nested is recorded beside them."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from swamp.batches import map_tensors
from swamp.errors import SwampError
from swamp.runtime.program import Outputs, Ref

VaryingSizes = Mapping[str, Mapping[int, str]]
"""Name of an input -> its dimensions that vary, with a name for each size; equal names are equal sizes."""


class _Record:
    """What a call of a flat model notes. It is no list: torch.export restores lists in attributes of modules."""

    output: Any = None
    """The output, with references to the numbers of the flat outputs."""
    left_out: list[str]
    """Places in the output of objects that cannot be returned, such as caches."""


class FlatModel(nn.Module):
    """A model with a flat list of tensors as inputs and outputs. It records how they are nested."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        super().__init__()
        self.model = model
        args, kwargs = call_arguments(example)
        self.arguments, tensors = self._plain_arguments(args, kwargs)
        self.tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        """Input name -> tensor of the example."""
        if not self.tensors:
            raise SwampError(
                "the example has no tensor; give what the network is called with, such as a batch of inputs."
            )
        self.record = _Record()
        # In the order of the signature, which is that of the tensors.
        self.call = args, {name: kwargs[name] for name in self.arguments if name in kwargs}
        self._require_replaceable()

    def _plain_arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The arguments by name with references in place of their tensors, and these tensors by place."""
        tensors: dict[str, Tensor] = {}
        bound = _bound(self.model, args, kwargs)
        return {name: _plain(value, name, tensors) for name, value in bound.items()}, tensors

    def _given(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the example with other tensors."""
        remaining = iter(tensors)
        return map_tensors(lambda _: next(remaining), self.call)

    def _require_replaceable(self) -> None:
        """Raises SwampError if `_given` loses a tensor or changes a value: a file would ignore this input."""
        others = {place: tensor.clone() for place, tensor in self.tensors.items()}
        try:
            arguments, found = self._plain_arguments(*self._given(list(others.values())))
        # Containers may have constructors of any kind.
        except Exception as error:
            raise SwampError(f"the example cannot be made again with other tensors ({error}). {_CONTAINERS}") from error
        lost = [place for place, tensor in others.items() if found.get(place) is not tensor]
        if lost or arguments != self.arguments:
            place = lost[0] if lost else next(name for name in arguments if arguments[name] != self.arguments[name])
            raise SwampError(f"{place!r} of the example changes if it is made again with other tensors. {_CONTAINERS}")

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        """The flat outputs of the model."""
        args, kwargs = self._given(tensors)
        flat: list[Any] = []
        self.record.left_out = []
        self.record.output = self._flattened(self.model(*args, **kwargs), flat, "output")
        return tuple(flat)

    def _flattened(self, value: Any, flat: list[Any], place: str) -> Any:
        if isinstance(value, Tensor | torch.SymInt | torch.SymFloat | torch.SymBool):
            flat.append(value)
            return Ref(str(len(flat) - 1))
        if type(value).__name__.endswith("Cache"):
            self.record.left_out.append(place)
            return None
        parts = _parts(value)
        if parts is not None:
            inner = {key: self._flattened(part, flat, f"{place}.{key}") for key, part in parts.items()}
            kept = {key: part for key, part in inner.items() if f"{place}.{key}" not in self.record.left_out}
            return kept if type(value) is dict else Outputs(kept)
        if isinstance(value, list | tuple):
            items = cast("Sequence[Any]", value)
            inner = [self._flattened(one, flat, f"{place}.{number}") for number, one in enumerate(items)]
            return tuple(inner) if isinstance(value, tuple) else inner
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise SwampError(
            f"the network returns a {type(value).__name__} at {place!r}; an exported network returns tensors in "
            "tuples, lists, dicts and dataclasses."
        )

    def repeat_single_example(self) -> bool:
        """Whether the example had a size of 1 in dimension 0 of each input; then it is repeated."""
        if not self.tensors or any(tensor.shape[:1] != (1,) for tensor in self.tensors.values()):
            return False
        self.tensors = {name: torch.cat([tensor, tensor]) for name, tensor in self.tensors.items()}
        return True

    def dynamic_shapes(self, dynamic: VaryingSizes | None) -> dict[str, Any]:
        """For torch.export: which dimensions of the inputs may vary."""
        auto: Any = torch.export.Dim.AUTO  # pyright: ignore
        if dynamic is None:
            first = next((len(tensor) for tensor in self.tensors.values() if tensor.dim()), None)
            if first == 0:
                raise SwampError(
                    "the example has a batch of 0, which torch.export takes as fixed; give 2 or more rows."
                )
            varying = {name: {0: auto} if t.dim() and len(t) == first else {} for name, t in self.tensors.items()}
        else:
            self._check_dynamic(dynamic)
            varying = {name: dict.fromkeys(dynamic.get(name, {}), auto) for name in self.tensors}
        return {"tensors": tuple(varying.values())}

    def _check_dynamic(self, dynamic: VaryingSizes) -> None:
        """Raises SwampError if it names no input, dimension or size, or gives one name to sizes that differ."""
        parts: list[Any] = [dynamic, *dynamic.values()] if isinstance(cast("Any", dynamic), Mapping) else [dynamic]
        if not all(isinstance(part, Mapping) for part in parts):
            raise SwampError(f"dynamic must be as in {{'x': {{0: 'batch', 1: 'tokens'}}}}, got {dynamic!r}.")
        unknown = sorted(set(dynamic) - set(self.tensors))
        if unknown:
            raise SwampError(f"dynamic names the input {unknown[0]!r}; the inputs are {', '.join(self.tensors)}.")
        sizes: dict[str, int] = {}
        named: list[tuple[str, Any, Any]] = [(place, *pair) for place, part in dynamic.items() for pair in part.items()]
        for place, axis, name in named:
            shape = tuple(self.tensors[place].shape)
            if type(axis) is not int or not 0 <= axis < len(shape):
                raise SwampError(
                    f"dynamic names dimension {axis!r} of {place!r}, which has {len(shape)} dimensions, counted from 0."
                )
            if not (isinstance(name, str) and name.isidentifier()):
                raise SwampError(
                    f"dynamic names a size {name!r}; use text of letters, digits and underscores, such as 'tokens'."
                )
            if shape[axis] < 2:
                raise SwampError(
                    f"dimension {axis} of {place!r} is {shape[axis]} in the example, which torch.export takes as "
                    "fixed; give an example in which it is 2 or more."
                )
            if sizes.setdefault(name, shape[axis]) != shape[axis]:
                raise SwampError(
                    f"dynamic gives the name {name!r} to sizes that differ in the example, {sizes[name]} and "
                    f"{shape[axis]}."
                )


def call_arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments that an example stands for."""
    if isinstance(example, Mapping):
        return (), {str(key): value for key, value in cast("Mapping[Any, Any]", example).items()}
    if isinstance(example, list | tuple) and _parts(cast("Any", example)) is None:
        return tuple(cast("Sequence[Any]", example)), {}
    return (cast("Any", example),), {}


_CONSTANTS = (bool, int, float, str)
_CONTAINERS = (
    "An exported network takes tensors in tuples, lists, dicts and dataclasses. The constructor of such a class of "
    "your own must take its parts and store them unchanged."
)


def _bound(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter name -> argument, or its default. A default that a program cannot state is text."""
    try:
        signature = inspect.signature(model.forward)
    except ValueError as error:
        raise SwampError(
            f"the arguments of {type(model).__name__} cannot be read; give the module that was scripted or traced."
        ) from error
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise SwampError(f"{type(model).__name__} cannot be called with the example: {error}.") from error
    found: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            found |= {f"{name}{number}": value for number, value in enumerate(bound.arguments.get(name, ()))}
        elif parameter.kind is parameter.VAR_KEYWORD:
            found |= bound.arguments.get(name, {})
        elif name in bound.arguments:
            found[name] = bound.arguments[name]
        else:
            constant = parameter.default is None or isinstance(parameter.default, _CONSTANTS)
            found[name] = parameter.default if constant else f"default of type {type(parameter.default).__name__}"
    return found


def _plain(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The value with references in place of its tensors, which are added to `tensors`; dataclasses become dicts."""
    if isinstance(value, Tensor):
        tensors[place] = value
        return Ref(place)
    parts = _parts(value)
    if parts is not None:
        return {key: _plain(inner, f"{place}.{key}", tensors) for key, inner in parts.items()}
    if isinstance(value, list | tuple):
        inner = [_plain(one, f"{place}.{n}", tensors) for n, one in enumerate(cast("Sequence[Any]", value))]
        return tuple(inner) if isinstance(value, tuple) else inner
    if value is None or isinstance(value, _CONSTANTS):
        return value
    raise SwampError(
        f"the example has a {type(value).__name__} at {place!r}; an exported network takes tensors, numbers, text "
        "and None, in tuples, lists, dicts and dataclasses."
    )


def _parts(value: Any) -> dict[str, Any] | None:
    """The entries of a mapping, or the fields of a dataclass or named tuple; None for anything else."""
    if isinstance(value, Mapping):
        return {str(key): part for key, part in cast("Mapping[Any, Any]", value).items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    untyped: Any = value
    if isinstance(value, tuple) and hasattr(untyped, "_fields"):
        return dict(zip(untyped._fields, untyped, strict=True))
    return None
