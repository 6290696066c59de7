"""Image files: Tiny ImageNet, and folders of images by class."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from swamp.datasets.cache import cache_folder, cached, given_folder
from swamp.datasets.problem import DataOptions, Normalise, Problem, in_memory, split_index
from swamp.errors import SwampError, need
from swamp.training.augment import Augment, crop_flip
from swamp.training.data import DatasetData
from swamp.training.rng import Seed
from swamp.training.task import Task

Labelled = list[tuple[Path, int]]
"""Files and their class numbers."""

_SIDE = 64
_IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_UNREAD = (".heic", ".heif", ".jxl")
"""Endings of images that Pillow cannot read: such files are refused, not skipped."""


def read_image(path: Path) -> Tensor:
    """(3, H, W) uint8 in the stored size. Raises SwampError for a file that is not a complete image."""
    return _tensor(_open(path, lambda image: _eight_bits(image).convert("RGB")))


def read_fitted(path: Path, size: int) -> Tensor:
    """(3, size, size) uint8: the largest centred square, resized and upright, as its EXIF orientation says.

    Raises SwampError for a file that is not an image.
    """
    operations = need("PIL.ImageOps", "swamp[images]")
    bilinear = need("PIL.Image", "swamp[images]").Resampling.BILINEAR

    def fitted(image: Any) -> Any:
        upright = operations.exif_transpose(_eight_bits(image))
        return operations.fit(upright.convert("RGB"), (size, size), bilinear)

    return _tensor(_open(path, fitted))


def check_images(paths: list[Path]) -> None:
    """Read the headers only, to find files that are not images before training."""
    for path in paths:
        _open(path, _eight_bits)


def _eight_bits(image: Any) -> Any:
    # Pillow clips values above 255 when it converts such images.
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels have more than 8 bits, mode {image.mode}: scale them to 0 - 255")
    return image


def image_paths(folder: Path) -> list[Path]:
    """The image files in `folder` and its subfolders, sorted by name; hidden and other files are skipped."""
    endings = (*need("PIL.Image", "swamp[images]").registered_extensions(), *_UNREAD)
    found: list[Path] = []
    for entry in _entries(folder):
        if entry.is_dir():
            found += image_paths(folder / entry.name)
        elif entry.is_file() and entry.name.lower().endswith(endings):
            found.append(folder / entry.name)
    return found


def class_folders(folder: Path) -> list[str]:
    """The names of the subfolders of `folder`, sorted: the position of each is its class number."""
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        found = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise SwampError(
            f"{folder} cannot be read as a folder ({error.strerror}); check its name and permissions."
        ) from (error)
    return sorted(found, key=lambda entry: entry.name)


def _open(path: Path, use: Callable[[Any], Any]) -> Any:
    images = need("PIL.Image", "swamp[images]")
    try:
        with images.open(path) as image:
            return use(image)
    except Exception as error:
        # Pillow's decoders raise many types (OSError, SyntaxError, ValueError, struct.error, ...).
        raise SwampError(f"{path} is not a complete image ({error}); replace or remove it.") from error


def _tensor(image: Any) -> Tensor:
    return torch.as_tensor(np.array(image, np.uint8)).permute(2, 0, 1).contiguous()


_FOLDER = "tiny-imagenet-200"
_ORIGIN = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY = Normalise((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))


def tiny_imagenet(options: DataOptions, seed: Seed) -> Problem:
    """Tiny ImageNet: 100,000 training and 10,000 test images of 3 x 64 x 64, 200 classes (in memory: 1.3 GB)."""
    root = _root(options.folder)
    classes = class_folders(root / "train")
    train, test = _train_files(root, classes), _test_files(root, classes)
    # Decoding takes half a minute; the cache file is named after a digest of the image files.
    made = cached(
        f"tiny-imagenet-{_fingerprint(root, train + test)}",
        lambda: {"train_inputs": _decode(train), "test_inputs": _decode(test)},
    )
    arrays = made["train_inputs"], _labels(train), made["test_inputs"], _labels(test)
    return in_memory(arrays, len(classes), options, seed, crop_flip(padding=4), _TINY)


def _root(folder: str) -> Path:
    places = [given_folder("tiny-imagenet", folder)] if folder else [cache_folder()]
    places.append(places[0] / _FOLDER)
    for place in places:
        if (place / "train").is_dir() and (place / "val" / "val_annotations.txt").is_file():
            return place
    raise SwampError(
        f"tiny-imagenet: neither {places[0]} nor {places[1]} has both train and val/val_annotations.txt. "
        f"Unpack {_ORIGIN} and pass its folder as the data folder."
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


def image_folder(options: DataOptions, seed: Seed) -> Problem:
    """Your own images in train/CLASS and test/CLASS (or val/CLASS), cropped square and resized to 3 x 64 x 64.

    With both test and val, val is the validation data and no training image is held out.
    Raises SwampError for folders without images, different classes, and files that are not images.
    """
    if not options.folder:
        raise SwampError("image-folder: pass a data folder that contains train/CLASS and test/CLASS (or val/CLASS).")
    root = given_folder("image-folder", options.folder)
    parts = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if "train" not in parts or len(parts) < 2:
        raise SwampError(f"image-folder: {root} needs the folders train and test (or val); it has {sorted(parts)}.")
    classes = class_folders(parts["train"])
    files = {name: _labelled(part, classes) for name, part in parts.items()}
    check_images([path for labelled in files.values() for path, _ in labelled])

    separate = len(parts) == 3
    train, held_out = split_index(len(files["train"]), replace(options, validation=0.0) if separate else options, seed)
    validation = files["val"] if separate else _chosen(files["train"], held_out)
    task = Task(
        _data(_chosen(files["train"], train), options, crop_flip(padding=8) if options.augment else None),
        _data(files["test"] if "test" in files else files["val"], options),
        _data(validation, options) if validation else None,
    )
    return Problem(task, (3, _SIDE, _SIDE), len(classes), available=len(files["train"]))


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """((3, 64, 64) uint8, class number) of each file, without randomness."""

    def __init__(self, files: Labelled) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, number = self.files[index]
        return read_fitted(path, _SIDE), number


def _data(files: Labelled, options: DataOptions, augment: Augment | None = None) -> DatasetData:
    return DatasetData(ImageFiles(files), workers=options.workers, augment=augment, normalise=_IMAGENET)


def _labelled(part: Path, classes: list[str]) -> Labelled:
    found = class_folders(part)
    if not classes or found != classes:
        odd = sorted(set(found) ^ set(classes))[:5]
        raise SwampError(
            f"image-folder: {part} must have one folder per class, the same in train and test; it has "
            f"{len(found)}, train has {len(classes)}" + (f"; only in one of them: {', '.join(odd)}." if odd else ".")
        )
    files: Labelled = []
    for number, name in enumerate(classes):
        paths = image_paths(part / name)
        if not paths:
            raise SwampError(f"image-folder: {part / name} has no images; add some or remove the class everywhere.")
        files += [(path, number) for path in paths]
    return files


def _chosen(files: Labelled, index: Tensor | None) -> Labelled:
    return [] if index is None else [files[int(i)] for i in index]
