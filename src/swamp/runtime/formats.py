"""Other formats that a network leaves in: dense ones that every runtime reads, and torch's CSR."""

import gzip
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.files import digest, load_tensors, save_tensors, write_atomic
from swamp.runtime.archive import read, save
from swamp.runtime.program import Dense, Program, pattern
from swamp.runtime.rewrite import folded
from swamp.runtime.sparse import csr

_CSR = "swamp-csr-1"


def to_onnx(program: Program, path: Path) -> None:
    """Write a dense ONNX graph for any batch size, with BatchNorm folded; deflated where the name ends in .gz.

    It is run in ONNX Runtime first and refused where it differs from torch by more than 1e-4. Needs swamp[export].
    """
    runtime = need("onnxruntime")
    need("onnxscript")
    dense = Dense(folded(program)).eval()
    inputs = example(program, 2)
    batch = torch.export.Dim("batch")
    shapes = {"inputs": tuple({0: batch} if given.shape[0] is None else None for given in program.inputs)}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "model.onnx"
        untyped: Any = torch.onnx
        exported: Any = untyped.export(
            dense, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False
        )
        exported.save(str(file), external_data=False)
        data = file.read_bytes()
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        found = session.run(None, {name: given.numpy() for name, given in zip(names, inputs, strict=True)})[0]
        want: Any = dense(*inputs)
    first: Tensor = want if isinstance(want, Tensor) else want[0]
    apart = float(np.abs(found - first.numpy()).max())
    if not apart <= 1e-4 * max(1.0, float(first.abs().max())):
        raise SwampError(f"the ONNX graph gives other outputs than torch (by {apart:.2g}); export to another format.")
    write_atomic(path, gzip.compress(data, 9) if path.suffix == ".gz" else data)


def to_pt2(program: Program, path: Path) -> None:
    """Write a dense program of torch.export, which `torch.export.load` reads."""
    dense = Dense(folded(program)).eval()
    batch = torch.export.Dim("batch")
    shapes = (tuple({0: batch} if given.shape[0] is None else None for given in program.inputs),)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        exported = torch.export.export(dense, example(program, 2), dynamic_shapes=shapes)
        torch.export.save(exported, Path(folder) / "model.pt2")
        write_atomic(path, (Path(folder) / "model.pt2").read_bytes())


def to_dense(program: Program, path: Path) -> None:
    """Write the state dict, zeros and all, as safetensors for `load_state_dict`."""
    save_tensors(path, program.tensors, {"format": "pt"})


def to_csr(program: Program, path: Path) -> None:
    """Write the state dict with each sparse tensor as the three of torch's CSR: NAME.crow, NAME.col, NAME.values."""
    stored: dict[str, Tensor] = {}
    shapes: dict[str, str] = {}
    for name, tensor in program.tensors.items():
        if tensor.dim() > 1 and tensor.dtype == torch.float32 and bool((tensor == 0).any()):
            matrix = csr(tensor.flatten(1))
            stored[f"{name}.crow"], stored[f"{name}.col"] = matrix.crow_indices().int(), matrix.col_indices().int()
            stored[f"{name}.values"] = matrix.values()
            shapes[f"shape {name}"] = " ".join(str(size) for size in tensor.shape)
        else:
            stored[name] = tensor
    save_tensors(path, stored, {"format": _CSR, "digest": digest(stored), **shapes})


def read_csr(path: Path | str) -> dict[str, Tensor]:
    """The state dict that `to_csr` wrote; sparse tensors are CSR matrices of all dimensions but the first together."""
    stored, metadata = load_tensors(Path(path))
    if metadata.get("format") != _CSR or metadata.get("digest") != digest(stored):
        raise SwampError(f"{path} is damaged, or not a CSR file of this version of swamp ({_CSR!r}). Export again.")
    for name, shape in [(key[6:], value) for key, value in metadata.items() if key.startswith("shape ")]:
        sizes = [int(size) for size in shape.split()]
        crow, col, values = (stored.pop(f"{name}.{part}") for part in ("crow", "col", "values"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            untyped: Any = torch
            stored[name] = untyped.sparse_csr_tensor(crow, col, values, (sizes[0], math.prod(sizes[1:])))
    return stored


def _to_sparse(program: Program, path: Path) -> None:
    save(program, path)
    read(path)


FORMATS: Mapping[str, tuple[Callable[[Program, Path], None], str, str]] = {
    "sparse": (_to_sparse, ".safetensors", "surviving weights and the graph: what swamp.load and swamp benchmark read"),
    "dense": (to_dense, ".dense.safetensors", "the state dict with its zeros, for load_state_dict"),
    "csr": (to_csr, ".csr.safetensors", "the state dict with sparse tensors in torch's CSR layout"),
    "onnx": (to_onnx, ".onnx", "a dense graph, checked in ONNX Runtime"),
    "pt2": (to_pt2, ".pt2", "a dense program of torch.export"),
}
"""Name -> (writer, end of the file's name, what it is)."""


def example(program: Program, batch: int) -> tuple[Tensor, ...]:
    """Inputs of the program's shapes and types, of a fixed pattern."""
    return tuple(pattern(given.shape, given.dtype, batch) for given in program.inputs)


def need(package: str) -> Any:
    """An optional package. Raises SwampError saying how to get it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise SwampError(f"this needs {package}: pip install 'swamp[export]'.") from error
