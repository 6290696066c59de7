"""The file of a sparse network: its program, and for each sparse tensor the positions and values of its weights.

It is a safetensors file of four tensors. (With a tensor for each layer, headers would be larger than small tensors.)
Reading it executes no code.

    values: the non-zero weights of all sparse tensors, in order.
    gaps: the distances between them, one byte each, compressed with zlib.
    rest: the bytes of all other tensors, compressed.
    program: nodes, names, dtypes and shapes as JSON, compressed.
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
from swamp.files import digest, load_tensors, parse_json, require_format, save_tensors
from swamp.runtime.operators import is_random
from swamp.runtime.program import Input, Node, Outputs, Program, Ref, Size, size_in

_FORMAT = "swamp-sparse-2"
_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError, zlib.error)
"""Exceptions that decoding an invalid description can raise."""
_FREE_BYTES, _MOST_COMPRESSION = 2**26, 2**12
"""A file may claim tensors of this many bytes, and this many times its own size: a weight in a thousand, in float32,
takes a thousandth of the dense tensor."""
_SKIP = 255
"""A gap of this size means 255 zeros, and that the next gap continues it."""


def save(program: Program, path: Path | str, *, values: torch.dtype = torch.float32) -> None:
    """Write a program to a file.

    Args:
        program: The program, as `trace` returned it, so that `state_dict` can give the weights back.
        path: The file. It is replaced in one step: an error leaves the previous file as it was.
        values: Type of the non-zero weights in sparse tensors: float32 (exact), or bfloat16 (rounded, half the size).

    Raises:
        SwampError: `values` is another type, the program has an argument that JSON cannot represent, or the file cannot
            be written.

    Examples:
        >>> import tempfile, torch
        >>> from swamp.runtime.archive import read, save
        >>> from swamp.runtime.tracing import trace
        >>> program = trace(torch.nn.Linear(3, 2), torch.ones(2, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(program, f"{folder}/network.safetensors")
        ...     copy = read(f"{folder}/network.safetensors")
        >>> torch.equal(copy.tensors["weight"], program.tensors["weight"])
        True
    """
    if values not in (torch.float32, torch.bfloat16):
        raise SwampError(f"values can be stored as float32 or bfloat16, not as {values}.")
    sparse = {name: tensor for name, tensor in program.tensors.items() if is_sparse(tensor)}
    rest = {name: tensor for name, tensor in program.tensors.items() if name not in sparse}
    positions = {name: tensor.flatten().nonzero().flatten() for name, tensor in sparse.items()}
    description = {
        "program": _program_to_json(program),
        "sparse": {name: [list(tensor.shape), len(positions[name])] for name, tensor in sparse.items()},
        "rest": {name: [list(tensor.shape), _to_json(tensor.dtype)] for name, tensor in rest.items()},
        "order": list(program.tensors),
    }
    weights = [tensor.flatten()[positions[name]].to(values) for name, tensor in sparse.items()]
    stored = {
        "values": torch.cat([torch.zeros(0, dtype=values), *weights]),
        "gaps": _compressed(b"".join(_gaps(places.numpy()) for places in positions.values())),
        "rest": _compressed(b"".join(tensor_bytes(tensor) for tensor in rest.values())),
        "program": _compressed(json.dumps(description, separators=(",", ":")).encode()),
    }
    save_tensors(Path(path), stored, {"format": _FORMAT, "digest": digest(stored)})


def read(path: Path | str) -> Program:
    """Read a program from a file that `save` wrote.

    Args:
        path: The file.

    Returns:
        The program. The shape of every value has been computed, without computing its numbers.

    Raises:
        SwampError: The file is missing, cut short, altered, or of another format.
    """
    stored, metadata = load_tensors(Path(path))
    if not metadata.get("format", "").startswith("swamp-sparse-"):
        raise SwampError(
            f"{path} is not an exported network but {_kind_of(metadata)}: it has weights and no graph. Load it into "
            "its model with load_state_dict, and export that with swamp.export(model, path, example)."
        )
    require_format(Path(path), metadata, _FORMAT, "an exported network")
    if metadata.get("digest") != digest(stored):
        raise SwampError(
            f"{path} is damaged: its content does not match its own checksum. Export again, or restore it."
        )
    try:
        description = parse_json(_decompressed(stored["program"], 2**28))
        _check_claims(description, Path(path).stat().st_size)
        tensors = {**_sparse_tensors(description["sparse"], stored), **_rest(description["rest"], stored["rest"])}
        program = _program_from_json(description["program"], {name: tensors[name] for name in description["order"]})
        _ = program.values  # computed now: shapes that do not fit are an error of the file
        return program
    except _ERRORS as error:
        raise SwampError(f"{path} is damaged: its description is invalid ({error}). Export again.") from error


def state_dict(path: Path | str) -> dict[str, Tensor]:
    """Read the dense state dict from a file that `save` wrote, for `load_state_dict` of the original module.

    Args:
        path: The file.

    Returns:
        Parameters and buffers by name, equal to those of the traced module unless stored as bfloat16. Tied ones are the
        same tensor.

    Raises:
        SwampError: As for `read`.
    """
    program = read(path)
    return {name: program.tensors[own] for name, own in program.state.items()}


def _kind_of(metadata: Mapping[str, str]) -> str:
    kind = metadata.get("format", "")
    return f"a file of the format {kind!r}" if kind.startswith("swamp") else "a plain state dict"


def _check_claims(description: Any, file_bytes: int) -> None:
    """Raises ValueError if the tensors would take much more memory than the file can hold."""
    claimed = sum(4 * math.prod(shape) for shape, _ in description["sparse"].values())
    claimed += sum(math.prod(shape) * _from_json(kind).itemsize for shape, kind in description["rest"].values())
    shapes = [shape for group in ("sparse", "rest") for shape, _ in description[group].values()]
    if not all(isinstance(size, int) and size >= 0 for shape in shapes for size in shape):
        raise ValueError("a shape is not a list of sizes")
    if claimed > _FREE_BYTES + _MOST_COMPRESSION * file_bytes:
        raise ValueError(f"its tensors would take {claimed:,} bytes, and the file has {file_bytes:,}")


def is_sparse(tensor: Tensor) -> bool:
    """Whether files store a tensor as the positions and values of its non-zero numbers."""
    return tensor.dim() > 1 and tensor.dtype == torch.float32 and bool((tensor == 0).any())


def tensor_bytes(tensor: Tensor) -> bytes:
    """The content of a tensor as bytes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _gaps(positions: Any) -> bytes:
    """Encode increasing positions as the number of zeros before each, in one byte; longer gaps use _SKIP."""
    zeros = np.diff(positions, prepend=-1) - 1
    skips = zeros // _SKIP
    ends = (skips + 1).cumsum()
    gaps = np.full(int(ends[-1]) if len(ends) else 0, _SKIP, np.uint8)
    gaps[ends - 1] = zeros % _SKIP
    return gaps.tobytes()


def _positions(gaps: Any) -> Any:
    is_weight = gaps != _SKIP
    return (gaps.astype(np.int64) + is_weight).cumsum()[is_weight] - 1


def _sparse_tensors(description: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sizes = {name: math.prod(shape) for name, (shape, _) in description.items()}
    gaps = np.frombuffer(_decompressed(stored["gaps"], 2 * sum(sizes.values()) + 1), np.uint8)
    ends = np.flatnonzero(gaps != _SKIP) + 1
    tensors: dict[str, Tensor] = {}
    first = begin = 0
    for name, (shape, count) in description.items():
        end = int(ends[first + count - 1]) if count else begin
        flat = torch.zeros(sizes[name])
        flat[torch.from_numpy(_positions(gaps[begin:end]))] = stored["values"][first : first + count].float()  # pyright: ignore
        tensors[name] = flat.reshape(shape)
        first, begin = first + count, end
    return tensors


def _rest(description: Mapping[str, Any], compressed: Tensor) -> dict[str, Tensor]:
    dtypes = {name: _from_json(dtype) for name, (_, dtype) in description.items()}
    sizes = {name: math.prod(shape) * dtypes[name].itemsize for name, (shape, _) in description.items()}
    data = bytearray(_decompressed(compressed, sum(sizes.values()) + 1))
    tensors: dict[str, Tensor] = {}
    begin = 0
    for name, (shape, _) in description.items():
        part = data[begin : begin + sizes[name]]
        # torch.frombuffer refuses an empty buffer.
        flat = torch.frombuffer(part, dtype=dtypes[name]) if part else torch.empty(0, dtype=dtypes[name])
        tensors[name] = flat.reshape(shape).clone()
        begin += sizes[name]
    return tensors


def _compressed(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(zlib.compress(data, 9), np.uint8).copy())  # pyright: ignore


def _decompressed(tensor: Tensor, limit: int) -> bytes:
    # With a limit, because a few compressed bytes can expand to gigabytes.
    decompressor = zlib.decompressobj()
    data = decompressor.decompress(tensor.numpy().tobytes(), limit)
    if not decompressor.eof:
        raise ValueError("more data than its shape allows")
    return data


# Programs as JSON


def _program_to_json(program: Program) -> dict[str, Any]:
    def node_to_json(node: Node) -> dict[str, Any]:
        call = {"target": node.target, "args": _to_json(node.args), "kwargs": _to_json(dict(node.kwargs))}
        return {"name": node.name, **call, "module": node.module}

    inputs = [
        {"name": one.name, "shape": list(one.shape), "dtype": str(one.dtype)[6:], "range": [one.low, one.high]}
        for one in program.inputs
    ]
    return {
        "inputs": inputs,
        "steps": [node_to_json(node) for node in program.nodes],
        "output": _to_json(program.output),
        "arguments": _to_json(dict(program.arguments)),
        "sizes": {name: [size.minimum, size.maximum, size.example] for name, size in program.sizes.items()},
        "state": dict(program.state),
        "in_torch": sorted(program.in_torch),
        "about": dict(program.provenance),
    }


def _program_from_json(values: Any, tensors: Mapping[str, Tensor]) -> Program:
    sizes = {name: Size(*stated) for name, stated in values["sizes"].items()}
    numbers = {name: size.minimum for name, size in sizes.items()}
    stated: list[Any] = [number for size in sizes.values() for number in (size.minimum, size.example)]
    if not all(isinstance(number, int) and 0 < number < 2**31 for number in stated):
        raise ValueError("a size is not a positive number")
    inputs: list[Input] = []
    for one in values["inputs"]:
        shape = tuple(one["shape"])
        if any(size_in(size, numbers) < 0 for size in shape):
            raise ValueError(f"input {one['name']!r} has a negative size")
        low, high = (float(number) for number in one["range"])
        inputs.append(Input(str(one["name"]), shape, _torch_value(one["dtype"], "dtype"), low, high))
    nodes: list[Node] = []
    for one in values["steps"]:
        args, kwargs = _from_json(one["args"]), _from_json(one["kwargs"])
        if is_random(one["target"], args, kwargs):
            raise ValueError(f"{one['target']} draws random numbers")
        nodes.append(Node(str(one["name"]), one["target"], args, kwargs, str(one["module"])))
    if not isinstance(values["about"], dict):
        raise ValueError("about is not an object")
    if not set(values["state"].values()) <= set(tensors):
        raise ValueError("the state dict names a tensor that the file does not have")
    return Program(
        tuple(inputs),
        tuple(nodes),
        _from_json(values["output"]),
        tensors,
        _from_json(values["arguments"]),
        sizes,
        values["state"],
        frozenset(values["in_torch"]),
        values["about"],
    )


_TORCH_TYPES = {getattr(torch, kind): kind for kind in ("dtype", "device", "layout", "memory_format")}


def _to_json(value: Any) -> Any:
    """An argument as JSON values. Types that JSON does not have become an object with one key, the name of the type."""
    if isinstance(value, Ref):
        return {"ref": value.name}
    if type(value) in _TORCH_TYPES:
        return {_TORCH_TYPES[type(value)]: str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"tuple": [_to_json(inner) for inner in cast("tuple[Any, ...]", value)]}
    if isinstance(value, list):
        return [_to_json(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, dict):
        kind = "outputs" if isinstance(value, Outputs) else "dict"
        return {kind: {key: _to_json(inner) for key, inner in cast("dict[str, Any]", value).items()}}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, float):
        return {"float": str(value)}
    raise SwampError(f"a program cannot be saved: it has an argument of type {type(value).__name__}.")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(inner) for inner in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = cast("dict[str, Any]", value).items()
    if kind == "ref":
        return Ref(inner)
    if kind == "tuple":
        return tuple(_from_json(one) for one in inner)
    if kind in ("dict", "outputs"):
        found = {key: _from_json(one) for key, one in inner.items()}
        return Outputs(found) if kind == "outputs" else found
    if kind == "float":
        return float(inner)
    if kind == "complex":
        return complex(*inner)
    if kind == "device":
        return torch.device(inner)
    if kind in _TORCH_TYPES.values():
        return _torch_value(inner, kind)
    raise ValueError(f"unknown kind of argument {kind!r}")


def _torch_value(name: str, kind: str) -> Any:
    """The dtype, layout or memory format with this name. Raises ValueError for any other attribute of torch."""
    value: Any = getattr(torch, name, None)
    if _TORCH_TYPES.get(type(value)) != kind:
        raise ValueError(f"torch has no {kind} {name!r}")
    return value
