"""Formats of exported networks besides the sparse one: dense ones for other runtimes, and the CSR layout of torch."""

import gzip
import math
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swamp.batches import tensors_of
from swamp.errors import SwampError, first_line, need
from swamp.files import digest, load_tensors, save_tensors, write_atomic
from swamp.runtime.archive import is_sparse, save
from swamp.runtime.dense import DenseNetwork
from swamp.runtime.kernels import to_csr_tensor
from swamp.runtime.program import Program
from swamp.runtime.rewrite import fold_batchnorm

_CSR = "swamp-csr-1"
_EXTRA = "swamp[export]"
Call = Callable[[Sequence[Tensor]], Any]
"""A function from input tensors to outputs."""


def to_onnx(program: Program, path: Path) -> None:
    """Write a dense ONNX graph for any batch size, with BatchNorm folded; compressed if the path ends in .gz.

    Raises SwampError if swamp[export] is not installed, if ONNX has no such network, or if ONNX Runtime computes other
    outputs than torch (by more than 1e-4). In this case nothing is written.
    """
    need("onnxruntime", _EXTRA)
    need("onnxscript", _EXTRA)
    network = _Flat(program)
    inputs = program.example_inputs(2)
    with _refusing("ONNX"), tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "model.onnx"
        untyped: Any = torch.onnx
        exported: Any = untyped.export(
            network,
            inputs,
            dynamo=True,
            dynamic_shapes={"inputs": _dynamic_shapes(program)},
            verbose=False,
            external_data=False,
        )
        exported.save(str(file), external_data=False)
        data = file.read_bytes()
        found, expected = onnx_call(data)(inputs), tensors_of(network(*inputs))
    for (place, output), own in zip(expected.items(), found, strict=True):
        _require_close(place, torch.as_tensor(own).double(), output.double())
    write_atomic(path, gzip.compress(data, 9) if path.suffix == ".gz" else data)


def _require_close(place: str, found: Tensor, expected: Tensor) -> None:
    finite = expected[expected.isfinite()]
    tolerance = 1e-4 * max(1.0, float(finite.abs().max()) if len(finite) else 0.0)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True):
        difference = float((found - expected).abs().max()) if found.shape == expected.shape else math.inf
        raise SwampError(
            f"the outputs of the ONNX graph differ from those of torch by {difference:.2g}"
            f"{f' in {place!r}' if place else ''}; export to another format."
        )


def onnx_call(model: bytes | str, options: Callable[[Any], None] = lambda options: None) -> Call:
    """A function that runs an ONNX graph in ONNX Runtime on a sequence of input tensors."""
    runtime = need("onnxruntime", _EXTRA)
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    options(settings)
    session = runtime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def call(inputs: Sequence[Tensor]) -> Any:
        return session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})

    return call


def to_pt2(program: Program, path: Path) -> None:
    """Write a dense program of torch.export, which `torch.export.load` reads."""
    network = _Flat(program)
    with _refusing("pt2"), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        shapes = (_dynamic_shapes(program),)
        exported = torch.export.export(network, program.example_inputs(2), dynamic_shapes=shapes, strict=False)
        torch.export.save(exported, Path(folder) / "model.pt2")
        data = (Path(folder) / "model.pt2").read_bytes()
    write_atomic(path, data)


@contextmanager
def _refusing(kind: str) -> Generator[None]:
    """Raises SwampError for errors of exporters, which are of any type."""
    try:
        yield
    except Exception as error:
        raise SwampError(
            f"this network cannot be written as {kind} ({first_line(error)}); export to another format."
        ) from error


class _Flat(nn.Module):
    """The dense network with tensors as inputs, and a tensor or a tuple of tensors as output."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.network = DenseNetwork(fold_batchnorm(program)).eval()

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = self.network.execute(inputs)
        return found if isinstance(found, Tensor) else tuple(tensors_of(found).values())


def _dynamic_shapes(program: Program) -> tuple[Any, ...]:
    """For each input, the dimensions that torch.export keeps variable."""
    auto: Any = torch.export.Dim.AUTO  # pyright: ignore
    return tuple({axis: auto for axis, size in enumerate(one.shape) if isinstance(size, str)} for one in program.inputs)


def to_dense(program: Program, path: Path) -> None:
    """Write the state dict including its zeros as safetensors, for `load_state_dict`."""
    save_tensors(path, {name: program.tensors[own] for name, own in program.state.items()}, {"format": "pt"})


def to_csr(program: Program, path: Path) -> None:
    """Write the state dict; a sparse tensor becomes the three tensors of torch's CSR layout.

    They are NAME.crow (row starts), NAME.col (columns) and NAME.values.
    """
    stored: dict[str, Tensor] = {}
    shapes: dict[str, str] = {}
    for name, own in program.state.items():
        tensor = program.tensors[own]
        if is_sparse(tensor):
            matrix = to_csr_tensor(tensor.flatten(1))
            stored[f"{name}.crow"], stored[f"{name}.col"] = matrix.crow_indices().int(), matrix.col_indices().int()
            stored[f"{name}.values"] = matrix.values()
            shapes[f"shape {name}"] = " ".join(str(size) for size in tensor.shape)
        else:
            stored[name] = tensor
    save_tensors(path, stored, {"format": _CSR, "digest": digest(stored), **shapes})


def read_csr(path: Path | str) -> dict[str, Tensor]:
    """Read the state dict that `to_csr` wrote.

    Args:
        path: The file.

    Returns:
        Tensors by name. A sparse tensor is a CSR matrix: its rows are the first dimension, its columns all others.

    Raises:
        SwampError: The file is missing, altered or of another format.
    """
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


WRITERS: Mapping[str, tuple[Callable[[Program, Path], None], str]] = {
    "sparse": (save, ".safetensors"),
    "dense": (to_dense, ".dense.safetensors"),
    "csr": (to_csr, ".csr.safetensors"),
    "onnx": (to_onnx, ".onnx"),
    "pt2": (to_pt2, ".pt2"),
}
"""Format -> (function that writes it, end of the file name)."""
