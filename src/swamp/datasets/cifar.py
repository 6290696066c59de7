"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), the binary version: records of label bytes and 3 x 32 x 32 pixels."""

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from swamp.datasets.cache import checksum_of, download, given_folder
from swamp.datasets.problem import DataOptions, Normalise, Problem, in_memory
from swamp.errors import SwampError
from swamp.training.augment import crop_flip
from swamp.training.rng import Seed

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarSource:
    """Archive, files and record sizes of one CIFAR. label_bytes: bytes before the pixels; the last one is the class."""

    task: str
    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    train_records: int
    test_records: int
    label_bytes: int
    classes: int
    normalise: Normalise


CIFAR_10 = CifarSource(
    task="cifar-10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    train_records=10_000,
    test_records=10_000,
    label_bytes=1,
    classes=10,
    normalise=Normalise((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
)
CIFAR_100 = CifarSource(
    task="cifar-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    train_records=50_000,
    test_records=10_000,
    label_bytes=2,
    classes=100,
    normalise=Normalise((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
)


def cifar_10(options: DataOptions, seed: Seed) -> Problem:
    """CIFAR-10: 50,000 training and 10,000 test images of 3 x 32 x 32, 10 classes."""
    return _problem(CIFAR_10, options, seed)


def cifar_100(options: DataOptions, seed: Seed) -> Problem:
    """CIFAR-100: 50,000 training and 10,000 test images of 3 x 32 x 32, 100 classes."""
    return _problem(CIFAR_100, options, seed)


def load_cifar(source: CifarSource, folder: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64 for training, then for test.

    From the .bin files or the archive in `folder`, else from the cache, else downloaded. Raises SwampError for a file
    that is missing, does not have the published number of records, or has an invalid label.
    """
    files = _files(source, folder)
    parts = [parse_records(files[name], name, source, source.train_records) for name in source.train]
    test_images, test_labels = parse_records(files[source.test], source.test, source, source.test_records)
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), test_images, test_labels


def parse_records(contents: bytes, name: str, source: CifarSource, records: int) -> tuple[Tensor, Tensor]:
    """Images and labels of one .bin file. Raises SwampError, naming the file, unless it has `records` records."""
    width = source.label_bytes + _PIXELS
    if len(contents) != records * width:
        raise SwampError(
            f"{source.task}: {name} has {len(contents)} bytes, expected {records} records of {width} bytes; "
            "replace it with a fresh copy of the binary version."
        )
    table = torch.as_tensor(np.frombuffer(contents, np.uint8).copy()).view(records, width)
    labels = table[:, source.label_bytes - 1].to(torch.int64)
    if int(labels.max()) >= source.classes:
        raise SwampError(
            f"{source.task}: {name} has a label {int(labels.max())}, expected 0 to {source.classes - 1}; "
            "replace it with a fresh copy of the binary version."
        )
    return table[:, source.label_bytes :].reshape(records, 3, 32, 32), labels


def _problem(source: CifarSource, options: DataOptions, seed: Seed) -> Problem:
    arrays = load_cifar(source, options.folder)
    return in_memory(arrays, source.classes, options, seed, crop_flip(padding=4), source.normalise)


def _files(source: CifarSource, folder: str) -> dict[str, bytes]:
    archive = source.url.rpartition("/")[2]
    if not folder:
        return _from_archive(source, download(source.url, f"md5:{source.md5}", source.task))
    place = given_folder(source.task, folder)
    names = [*source.train, source.test]
    for inner in (place, place / source.folder):
        # One file is enough to choose the folder; a missing file is then an error that names it.
        if any((inner / name).is_file() for name in names):
            return {name: _read(source, inner / name) for name in names}
    if not (place / archive).is_file():
        raise SwampError(
            f"{source.task}: {place} has neither {names[0]} (and the other .bin files, there or in {source.folder}) "
            f"nor {archive}; put one of them there, or omit the folder to download it."
        )
    return _from_archive(source, place / archive)


def _read(source: CifarSource, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SwampError(
            f"{source.task}: {path} cannot be read ({error.strerror}); put a fresh copy of the binary version there."
        ) from error


def _from_archive(source: CifarSource, path: Path) -> dict[str, bytes]:
    if (found := checksum_of(_read(source, path), "md5")) != source.md5:
        raise SwampError(f"{path} has the MD5 {found}, expected {source.md5}; replace it with a fresh copy.")
    wanted = {f"{source.folder}/{name}": name for name in (*source.train, source.test)}
    largest = max(source.train_records, source.test_records) * (source.label_bytes + _PIXELS)
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            # Members are read by their exact names and never unpacked, so no name can lead out of a folder.
            for member in archive:
                contents: IO[bytes] | None = archive.extractfile(member) if member.name in wanted else None
                if contents is not None:
                    # No more than a whole file has, and a byte: a few bytes can unpack to gigabytes.
                    files[wanted[member.name]] = contents.read(largest + 1)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, KeyError) as error:
        raise SwampError(f"{path} cannot be read ({error}); replace it with a fresh copy.") from error
    if missing := sorted(set(wanted.values()) - set(files)):
        raise SwampError(f"{path} lacks {', '.join(missing)}; replace it with a fresh copy of the binary version.")
    return files
