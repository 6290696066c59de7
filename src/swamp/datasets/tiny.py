"""Tiny ImageNet (Stanford CS231n): 200 classes of 64 x 64 images, in the layout of its archive."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from swamp.datasets.cache import cache_folder, cached, given_folder
from swamp.datasets.images import class_folders, image_paths, read_image
from swamp.datasets.normalise import Normalise
from swamp.datasets.problem import DataOptions, Problem, in_memory
from swamp.errors import SwampError
from swamp.training.augment import crop_flip
from swamp.training.data import TensorData
from swamp.training.order import Seed

Labelled = list[tuple[Path, int]]

_SIDE = 64
_FOLDER = "tiny-imagenet-200"
_ORIGIN = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
_NORMALISE = Normalise((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))


def tiny_imagenet(options: DataOptions, seed: Seed) -> Problem:
    """Tiny ImageNet: 100,000 training and 10,000 test images of 3 x 64 x 64, 200 classes (in memory: 1.3 GB)."""
    root = _root(options.folder)
    classes = class_folders(root / "train")
    train, test = _train_files(root, classes), _test_files(root, classes)
    # Decoding takes half a minute; the cache is named after the files it was made of.
    made = cached(
        f"tiny-imagenet-{_fingerprint(root, train + test)}",
        lambda: {"train_inputs": _decode(train), "test_inputs": _decode(test)},
    )
    return in_memory(
        TensorData(made["train_inputs"], _labels(train), crop_flip(padding=4), _NORMALISE),
        TensorData(made["test_inputs"], _labels(test), normalise=_NORMALISE),
        len(classes),
        options,
        seed,
    )


def _root(folder: str) -> Path:
    places = [given_folder("tiny-imagenet", folder)] if folder else [cache_folder()]
    places.append(places[0] / _FOLDER)
    for place in places:
        if (place / "train").is_dir() and (place / "val" / "val_annotations.txt").is_file():
            return place
    raise SwampError(
        f"tiny-imagenet: neither {places[0]} nor {places[1]} has both train and val/val_annotations.txt. "
        f"Unpack {_ORIGIN} and name its folder as the data folder."
    )


def _train_files(root: Path, classes: list[str]) -> Labelled:
    files: Labelled = []
    for number, name in enumerate(classes):
        folder = root / "train" / name / "images"
        paths = image_paths(folder) if folder.is_dir() else []
        if not paths:
            raise SwampError(f"tiny-imagenet: {folder} has no images; unpack {_ORIGIN} again.")
        files += [(path, number) for path in paths]
    if not files:
        raise SwampError(f"tiny-imagenet: {root / 'train'} has no class folders; unpack {_ORIGIN} again.")
    return files


def _test_files(root: Path, classes: list[str]) -> Labelled:
    # The archive's own test images have no labels; its validation images serve as the test set.
    table = root / "val" / "val_annotations.txt"
    number_of = {name: number for number, name in enumerate(classes)}
    files: Labelled = []
    for line, text in enumerate(table.read_text(errors="replace").splitlines(), 1):
        fields = text.split("\t")
        path = root / "val" / "images" / Path(fields[0]).name
        if len(fields) < 2 or fields[1] not in number_of or not path.is_file():
            raise SwampError(
                f"tiny-imagenet: line {line} of {table} does not name an image in val/images and a class in train: "
                f"{text[:80]!r}; unpack {_ORIGIN} again."
            )
        files.append((path, number_of[fields[1]]))
    if not files:
        raise SwampError(f"tiny-imagenet: {table} is empty; unpack {_ORIGIN} again.")
    return files


def _decode(files: Labelled) -> Tensor:
    images = torch.empty((len(files), 3, _SIDE, _SIDE), dtype=torch.uint8)
    for index, (path, _) in enumerate(files):
        image = read_image(path)
        if tuple(image.shape[1:]) != (_SIDE, _SIDE):
            raise SwampError(
                f"{path} is {image.shape[2]} x {image.shape[1]} pixels, expected {_SIDE} x {_SIDE}; "
                "use the task image-folder for images of other sizes."
            )
        images[index] = image
    return images


def _labels(files: Labelled) -> Tensor:
    return torch.tensor([number for _, number in files], dtype=torch.int64)


def _fingerprint(root: Path, files: Labelled) -> str:
    total = hashlib.sha256()
    for path, _ in files:
        found = path.stat()
        total.update(f"{path.relative_to(root)}:{found.st_size}:{found.st_mtime_ns};".encode())
    return total.hexdigest()[:16]
