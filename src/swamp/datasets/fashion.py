"""Fashion-MNIST (Xiao et al. 2017), and the idx format of its files."""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swamp.datasets.cache import checksum_of, download, given_folder
from swamp.datasets.problem import DataOptions, Normalise, Problem, in_memory
from swamp.errors import SwampError
from swamp.training.augment import crop_flip
from swamp.training.rng import Seed

_NORMALISE = Normalise(mean=(0.2860,), std=(0.3530,))


@dataclass(frozen=True)
class IdxFile:
    """One idx file: its name without .gz, and SHA-256 of its contents and of the published .gz."""

    name: str
    contents: str
    archive: str


@dataclass(frozen=True)
class IdxSource:
    """Source of the idx files: training images, training labels, test images, test labels."""

    task: str
    url: str
    installed: Path
    package: str
    """Debian's package of the files in `installed`."""
    files: tuple[IdxFile, IdxFile, IdxFile, IdxFile]
    classes: int


# Debian's .gz files lack the name and time in the published ones; the contents are equal, byte for byte.
FASHION_MNIST = IdxSource(
    task="fashion-mnist",
    url="https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    installed=Path("/usr/share/datasets/fashion-mnist"),
    package="dataset-fashion-mnist",
    files=(
        IdxFile(
            "train-images-idx3-ubyte",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        IdxFile(
            "t10k-images-idx3-ubyte",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    classes=10,
)


def fashion_mnist(options: DataOptions, seed: Seed) -> Problem:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 1 x 28 x 28, 10 classes."""
    arrays = load_idx(FASHION_MNIST, options.folder)
    return in_memory(arrays, FASHION_MNIST.classes, options, seed, crop_flip(padding=2), _NORMALISE)


def load_idx(source: IdxSource, folder: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 1, H, W) uint8 and labels (n,) int64 for training, then for test.

    The files are searched in `folder`, then where a Debian package installs them, then in the cache; otherwise they are
    downloaded. Raises SwampError for a file that is missing or differs from the published one.
    """
    paths = [_find(source, folder, file) for file in source.files]
    arrays = [
        read_idx(path, dimensions, file.contents)
        for path, dimensions, file in zip(paths, (3, 1, 3, 1), source.files, strict=True)
    ]
    for images, labels, path in ((arrays[0], arrays[1], paths[1]), (arrays[2], arrays[3], paths[3])):
        if len(images) != len(labels) or int(labels.max()) >= source.classes:
            raise SwampError(
                f"{path} has {len(labels)} labels up to {int(labels.max())}, expected {len(images)} labels "
                f"below {source.classes}; replace the files in that folder with fresh copies."
            )
    return arrays[0].unsqueeze(1), arrays[1].to(torch.int64), arrays[2].unsqueeze(1), arrays[3].to(torch.int64)


def _find(source: IdxSource, folder: str, file: IdxFile) -> Path:
    place = given_folder(source.task, folder) if folder else source.installed
    for path in (place / f"{file.name}.gz", place / file.name):
        if path.is_file():
            return path
    if folder:
        raise SwampError(
            f"{source.task}: {place} has neither {file.name}.gz nor {file.name}; put the four idx files there; "
            f"or omit the folder to download them, or to use Debian's package {source.package}."
        )
    try:
        return download(f"{source.url}{file.name}.gz", f"sha256:{file.archive}", source.task)
    except SwampError as error:
        raise SwampError(f"{error} On Debian, the package {source.package} has the files.") from error


_UNSIGNED_BYTE = 8
_LARGEST, _PIECE = 1 << 30, 1 << 20


def read_idx(path: Path, dimensions: int, sha256: str | None = None) -> Tensor:
    """The uint8 array in an idx file, gzipped or not: two zero bytes, type, rank, sizes, then the values.

    sha256: of the uncompressed contents, as distributors compress differently. Raises SwampError, naming the file, if
    it is not such an array with `dimensions` dimensions.
    """
    contents = _contents(path, 4 + 4 * dimensions)
    if sha256 is not None and checksum_of(contents, "sha256") != sha256:
        raise _damaged(path, f"its SHA-256 is not that of the published file ({sha256[:16]}...)")
    try:
        return parse_idx(contents, dimensions)
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def parse_idx(contents: bytes, dimensions: int) -> Tensor:
    """The uint8 tensor in idx bytes. Raises ValueError for anything else."""
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    header = 4 + 4 * dimensions
    if contents[:4] != magic:
        raise ValueError(f"it starts with {contents[:4].hex(' ') or 'nothing'}, expected {magic.hex(' ')}")
    if len(contents) < header:
        raise ValueError(f"it has {len(contents)} bytes, its header needs {header}")
    sizes = [int.from_bytes(contents[i : i + 4], "big") for i in range(4, header, 4)]
    if 0 in sizes:
        raise ValueError(f"it has no values: its sizes are {sizes}")
    if math.prod(sizes) != len(contents) - header:
        raise ValueError(f"it has {len(contents) - header} values, its sizes {sizes} need {math.prod(sizes)}")
    return torch.as_tensor(np.frombuffer(contents, np.uint8, offset=header).copy()).view(sizes)


def _contents(path: Path, header: int) -> bytes:
    """Read at most one byte more than the header states: a small gzip file can expand to gigabytes."""
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if gzipped else path.open("rb") as file:
            contents = bytearray(file.read(header))
            stated = math.prod(int.from_bytes(contents[i : i + 4], "big") for i in range(4, header, 4))
            most = header + min(stated, _LARGEST) + 1
            # In pieces: read(most) would allocate the stated size at once.
            while len(contents) < most and (more := file.read(min(most - len(contents), _PIECE))):
                contents += more
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"it cannot be read: {error}") from error
    if len(contents) > _LARGEST:
        raise _damaged(path, f"it has more than {_LARGEST} bytes")
    return bytes(contents)


def _damaged(path: Path, reason: str) -> SwampError:
    return SwampError(
        f"{path} is not a valid idx file: {reason}. Replace it with a fresh copy, or choose another data folder."
    )
