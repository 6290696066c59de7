"""The file of a sparse network: its program, and of each sparse tensor where its weights are and what they are.

A safetensors file of four tensors, as many small ones would weigh more than what they hold; no code runs on reading it.
values: the surviving weights of all sparse tensors, in their order. gaps: the distances between them, a byte each,
deflated. rest: the bytes of all other tensors, deflated. program: JSON, deflated: steps, names, types and shapes.
"""

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.files import digest, load_tensors, parse_json, save_tensors
from swamp.runtime.program import Dense, Input, Program, Ref, Step, operation

_FORMAT = "swamp-sparse-1"
_WRONG = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError, zlib.error)
_FAR = 255
"""A gap of so much is followed by another: no weight is there."""


def save(program: Program, path: Path | str, *, values: torch.dtype = torch.float32) -> None:
    """Write a program to `path`. values: of sparse tensors, float32 (exact) or bfloat16 (rounded, half the size)."""
    if values not in (torch.float32, torch.bfloat16):
        raise SwampError(f"values can be stored as float32 or bfloat16, not as {values}.")
    sparse = {name: tensor for name, tensor in program.tensors.items() if _is_sparse(tensor)}
    rest = {name: tensor for name, tensor in program.tensors.items() if name not in sparse}
    alive = {name: tensor.flatten().nonzero().flatten() for name, tensor in sparse.items()}
    described = {
        "program": _to_json(program),
        "sparse": {name: [list(tensor.shape), len(alive[name])] for name, tensor in sparse.items()},
        "rest": {name: [list(tensor.shape), _plain(tensor.dtype)] for name, tensor in rest.items()},
        "order": list(program.tensors),
    }
    nothing = torch.zeros(0, dtype=values)
    stored = {
        "values": torch.cat([nothing, *(t.flatten()[alive[name]].to(values) for name, t in sparse.items())]),
        "gaps": _deflated(b"".join(_gaps(places.numpy()) for places in alive.values())),
        "rest": _deflated(b"".join(_bytes(tensor) for tensor in rest.values())),
        "program": _deflated(json.dumps(described, separators=(",", ":")).encode()),
    }
    save_tensors(Path(path), stored, {"format": _FORMAT, "digest": digest(stored)})


def read(path: Path | str) -> Program:
    """The program that `save` wrote. Raises SwampError for a file that is cut short, altered or of another kind."""
    stored, metadata = load_tensors(Path(path))
    if metadata.get("format") != _FORMAT:
        raise SwampError(
            f"{path} has the format {metadata.get('format')!r}, and this version of swamp reads {_FORMAT!r}. "
            "Export the run again, or install the version that wrote it."
        )
    if metadata.get("digest") != digest(stored):
        raise SwampError(f"{path} is damaged: its bytes do not match its own checksum. Export again or restore it.")
    try:
        described = parse_json(_inflated(stored["program"], 2**28))
        tensors = {**_sparse(described["sparse"], stored), **_rest(described["rest"], stored["rest"])}
        program = _from_json(described["program"], {name: tensors[name] for name in described["order"]})
        Dense(program).check_shapes()
        return program
    except _WRONG as error:
        raise SwampError(f"{path} is damaged: its description is not whole ({error}). Export again.") from error


def state_dict(path: Path | str) -> dict[str, Tensor]:
    """The dense state dict in the file of a sparse network, for `load_state_dict` of the module it came from."""
    return dict(read(path).tensors)


def _gaps(places: Any) -> bytes:
    """Distances between rising places as bytes: 255 stands for 255 places and no weight."""
    steps = np.diff(places, prepend=-1) - 1
    far = steps // _FAR
    ends = (far + 1).cumsum()
    gaps = np.full(int(ends[-1]) if len(ends) else 0, _FAR, np.uint8)
    gaps[ends - 1] = steps % _FAR
    return gaps.tobytes()


def _places(gaps: Any) -> Any:
    alive = gaps != _FAR
    return (gaps.astype(np.int64) + alive).cumsum()[alive] - 1


def _is_sparse(tensor: Tensor) -> bool:
    return tensor.dim() > 1 and tensor.dtype == torch.float32 and bool((tensor == 0).any())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _sparse(described: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sizes = {name: math.prod(shape) for name, (shape, _) in described.items()}
    gaps = np.frombuffer(_inflated(stored["gaps"], 2 * sum(sizes.values()) + 1), np.uint8)
    ends = np.flatnonzero(gaps != _FAR) + 1
    found: dict[str, Tensor] = {}
    first = begin = 0
    for name, (shape, count) in described.items():
        end = int(ends[first + count - 1]) if count else begin
        places = _places(gaps[begin:end])
        flat = torch.zeros(sizes[name])
        flat[torch.from_numpy(places)] = stored["values"][first : first + count].float()  # pyright: ignore
        found[name] = flat.reshape(shape)
        first, begin = first + count, end
    return found


def _rest(described: Mapping[str, Any], deflated: Tensor) -> dict[str, Tensor]:
    types = {name: _rich(dtype) for name, (_, dtype) in described.items()}
    sizes = {name: math.prod(shape) * types[name].itemsize for name, (shape, _) in described.items()}
    data = bytearray(_inflated(deflated, sum(sizes.values()) + 1))
    found: dict[str, Tensor] = {}
    begin = 0
    for name, (shape, _) in described.items():
        part = data[begin : begin + sizes[name]]
        empty = torch.zeros(shape, dtype=types[name])
        found[name] = torch.frombuffer(part, dtype=types[name]).reshape(shape).clone() if part else empty
        begin += sizes[name]
    return found


def _deflated(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(zlib.compress(data, 9), np.uint8).copy())  # pyright: ignore


def _inflated(tensor: Tensor, most: int) -> bytes:
    # Never more than there can be: a few bytes can ask for gigabytes.
    engine = zlib.decompressobj()
    data = engine.decompress(tensor.numpy().tobytes(), most)
    if not engine.eof:
        raise ValueError("more data than its shape allows")
    return data


def _to_json(program: Program) -> dict[str, Any]:
    def step(one: Step) -> dict[str, Any]:
        shape = None if one.shape is None else list(one.shape)
        known = {"name": one.name, "target": one.target, "args": _plain(one.args), "kwargs": _plain(dict(one.kwargs))}
        return {**known, "module": one.module, "shape": shape}

    inputs = [{"name": one.name, "shape": list(one.shape), "dtype": str(one.dtype)[6:]} for one in program.inputs]
    steps = [step(one) for one in program.steps]
    return {"inputs": inputs, "steps": steps, "output": _plain(program.output), "about": dict(program.about)}


def _from_json(values: Any, tensors: Mapping[str, Tensor]) -> Program:
    inputs = [Input(one["name"], tuple(one["shape"]), _of_torch(one["dtype"], "dtype")) for one in values["inputs"]]
    steps: list[Step] = []
    for one in values["steps"]:
        operation(one["target"])
        shape = None if one["shape"] is None else tuple(one["shape"])
        steps.append(Step(one["name"], one["target"], _rich(one["args"]), _rich(one["kwargs"]), one["module"], shape))
    if not isinstance(values["about"], dict):
        raise ValueError("about is no object")
    return Program(tuple(inputs), tuple(steps), _rich(values["output"]), tensors, values["about"])


_TORCH = {torch.dtype: "dtype", torch.device: "device", torch.layout: "layout", torch.memory_format: "memory_format"}


def _plain(value: Any) -> Any:
    """An argument as JSON: what JSON does not know is an object of one key."""
    if isinstance(value, Ref):
        return {"ref": value.name}
    if type(value) in _TORCH:
        return {_TORCH[type(value)]: str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"tuple": [_plain(inner) for inner in cast("tuple[Any, ...]", value)]}
    if isinstance(value, list):
        return [_plain(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {"dict": {key: _plain(inner) for key, inner in cast("dict[str, Any]", value).items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SwampError(f"a program cannot be written with an argument of type {type(value).__name__}.")


def _of_torch(name: str, kind: str) -> Any:
    """The type, layout or memory format of that name; nothing else that torch has."""
    found: Any = getattr(torch, name, None)
    if _TORCH.get(cast("type[torch.dtype]", type(found))) != kind:
        raise ValueError(f"torch has no {kind} {name!r}")
    return found


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return [_rich(inner) for inner in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = cast("dict[str, Any]", value).items()
    if kind == "ref":
        return Ref(inner)
    if kind == "tuple":
        return tuple(_rich(one) for one in inner)
    if kind == "dict":
        return {key: _rich(one) for key, one in inner.items()}
    if kind == "device":
        return torch.device(inner)
    if kind in _TORCH.values():
        return _of_torch(inner, kind)
    raise ValueError(f"an argument of kind {kind!r}")
