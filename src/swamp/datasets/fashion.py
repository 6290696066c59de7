"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from swamp.datasets.cache import download, given_folder
from swamp.datasets.idx import read_idx
from swamp.datasets.normalise import Normalise
from swamp.datasets.problem import DataOptions, Problem, in_memory
from swamp.errors import SwampError
from swamp.training.augment import crop_flip
from swamp.training.data import TensorData
from swamp.training.order import Seed

_NORMALISE = Normalise(mean=(0.2860,), std=(0.3530,))


@dataclass(frozen=True)
class IdxFile:
    """One idx file: its name without .gz, and SHA-256 of its contents and of the published .gz."""

    name: str
    contents: str
    archive: str


@dataclass(frozen=True)
class IdxSource:
    """Where images and labels in idx files come from: training images and labels, then those of the test set."""

    task: str
    url: str
    installed: Path
    files: tuple[IdxFile, IdxFile, IdxFile, IdxFile]
    classes: int


# The published .gz files carry a name and a time that Debian's lack; the contents are the same, byte for byte.
FASHION_MNIST = IdxSource(
    task="fashion-mnist",
    url="https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    installed=Path("/usr/share/datasets/fashion-mnist"),
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
    train_images, train_labels, test_images, test_labels = load(FASHION_MNIST, options.folder)
    return in_memory(
        TensorData(train_images, train_labels, crop_flip(padding=2), _NORMALISE),
        TensorData(test_images, test_labels, normalise=_NORMALISE),
        FASHION_MNIST.classes,
        options,
        seed,
    )


def load(source: IdxSource, folder: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 1, H, W) uint8 and labels (n,) int64 for training, then for test.

    Taken from the folder given, else from where Debian installs them, else from the cache, else downloaded.
    Raises SwampError for a file that is missing or is not, byte for byte, the published one.
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
            f"{source.task}: {place} has neither {file.name}.gz nor {file.name}; put the four idx files there, "
            "or name no folder to have them downloaded."
        )
    return download(f"{source.url}{file.name}.gz", f"sha256:{file.archive}", source.task)
