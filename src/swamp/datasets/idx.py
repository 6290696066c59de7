"""The idx format of MNIST and its kin, plain or gzipped: two zero bytes, type, rank, sizes, then the values."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swamp.datasets.cache import checksum_of
from swamp.errors import SwampError

_UNSIGNED_BYTE = 8
_LARGEST, _PIECE = 1 << 30, 1 << 20


def read_idx(path: Path, dimensions: int, sha256: str | None = None) -> Tensor:
    """The uint8 array in the file, gzipped or not, with so many dimensions.

    sha256: of the contents before compression, as distributors compress anew. Raises SwampError for any file that
    is not exactly such an array: it names the file, what is wrong and what to do.
    """
    contents = _contents(path, 4 + 4 * dimensions)
    if sha256 is not None and checksum_of(contents, "sha256") != sha256:
        raise _damaged(path, f"its SHA-256 is not that of the published file ({sha256[:16]}...)")
    try:
        return parse_idx(contents, dimensions)
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def parse_idx(contents: bytes, dimensions: int) -> Tensor:
    """The uint8 tensor that idx bytes describe. Raises ValueError, saying what is wrong, for anything else."""
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    header = 4 + 4 * dimensions
    if contents[:4] != magic:
        raise ValueError(f"it starts with {contents[:4].hex(' ') or 'nothing'}, expected {magic.hex(' ')}")
    if len(contents) < header:
        raise ValueError(f"it has {len(contents)} bytes, its header alone needs {header}")
    sizes = [int.from_bytes(contents[i : i + 4], "big") for i in range(4, header, 4)]
    if 0 in sizes:
        raise ValueError(f"it holds no values: its sizes are {sizes}")
    if math.prod(sizes) != len(contents) - header:
        raise ValueError(f"it holds {len(contents) - header} values, its sizes {sizes} need {math.prod(sizes)}")
    return torch.as_tensor(np.frombuffer(contents, np.uint8, offset=header).copy()).view(sizes)


def _contents(path: Path, header: int) -> bytes:
    """The file, and one byte more than it says that it has, if it does: a few bytes can unpack to gigabytes."""
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if gzipped else path.open("rb") as file:
            contents = bytearray(file.read(header))
            said = math.prod(int.from_bytes(contents[i : i + 4], "big") for i in range(4, header, 4))
            most = header + min(said, _LARGEST) + 1
            # By the piece: room for all that is said to come would be taken at once.
            while len(contents) < most and (more := file.read(min(most - len(contents), _PIECE))):
                contents += more
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"it cannot be read: {error}") from error
    if len(contents) > _LARGEST:
        raise _damaged(path, f"it holds more than {_LARGEST} bytes")
    return bytes(contents)


def _damaged(path: Path, reason: str) -> SwampError:
    return SwampError(
        f"{path} is not a whole idx file: {reason}. Replace it with a fresh copy, or name another data folder."
    )
