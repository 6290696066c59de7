"""Any images in folders by class, read from disk as they are needed: for data that does not fit in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from swamp.datasets.cache import given_folder
from swamp.datasets.images import check_images, class_folders, image_paths, read_fitted
from swamp.datasets.normalise import Normalise
from swamp.datasets.problem import DataOptions, Problem, split_index
from swamp.errors import SwampError
from swamp.training.augment import Augment, crop_flip
from swamp.training.data import Batch, DatasetData
from swamp.training.order import Seed
from swamp.training.task import Task

Labelled = list[tuple[Path, int]]

_SIDE = 64
# The statistics of ImageNet, of which most such collections are made.
_NORMALISE = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def image_folder(options: DataOptions, seed: Seed) -> Problem:
    """Your own images in train/CLASS and test/CLASS (or val/CLASS), cut square and resized to 3 x 64 x 64.

    Where both test and val are there, val is the validation data and no training image is held out.
    Raises SwampError for folders without images, classes that differ, and files that are no images.
    """
    if not options.folder:
        raise SwampError("image-folder: name the data folder, which has train/CLASS and test/CLASS (or val/CLASS).")
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
        ImageFileData.of(_chosen(files["train"], train), options, crop_flip(padding=8) if options.augment else None),
        ImageFileData.of(files["test"] if "test" in files else files["val"], options),
        ImageFileData.of(validation, options) if validation else None,
    )
    return Problem(task, (3, _SIDE, _SIDE), len(classes))


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """((3, 64, 64) uint8, class number) of each file; nothing in it is random."""

    def __init__(self, files: Labelled) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, number = self.files[index]
        return read_fitted(path, _SIDE), number


@dataclass(frozen=True)
class ImageFileData:
    """Files fetched by a DataLoader, then augmented and normalised a batch at a time as data in memory is.

    The randomness is here and not in the workers: so it is the same for any number of them, a run resumed in
    mid-epoch sees what it would have seen, and no global generator is used.
    """

    files: DatasetData
    augment: Augment | None = None
    normalise: Callable[[Any], Any] = _NORMALISE

    @classmethod
    def of(cls, files: Labelled, options: DataOptions, augment: Augment | None = None) -> "ImageFileData":
        """Data of these files, read with `options.workers` processes."""
        return cls(DatasetData(ImageFiles(files), workers=options.workers), augment)

    def __len__(self) -> int:
        return len(self.files)

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch of `shuffled`."""
        return self.files.steps(batch_size)

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, augmented, from batch number `first` on."""
        noise = torch.Generator()
        base = seed.at("augment", epoch).number()
        for step, (images, targets) in enumerate(self.files.shuffled(batch_size, seed, epoch, first), first):
            if self.augment is not None:
                images = self.augment(images, noise.manual_seed(base + step))
            yield self.normalise(images), targets

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All examples once, in fixed order, without augmentation."""
        for images, targets in self.files.in_order(batch_size):
            yield self.normalise(images), targets

    def to(self, device: torch.device) -> "ImageFileData":
        """Itself: batches are moved one by one."""
        del device
        return self


def _labelled(part: Path, classes: list[str]) -> Labelled:
    found = class_folders(part)
    if not classes or found != classes:
        odd = sorted(set(found) ^ set(classes))[:5]
        raise SwampError(
            f"image-folder: {part} must have one folder for each class, the same in train and test; it has "
            f"{len(found)}, train has {len(classes)}" + (f"; only one of them has: {', '.join(odd)}." if odd else ".")
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
