"""Turn folders of images (train/CLASS/*.png, test/CLASS/*.png) into the binary files that the CIFAR tasks read.

python benchmarks/cifar_binary.py SOURCE DESTINATION  (then: swamp run cifar-10-resnet --folder DESTINATION)

For CIFAR-10 or CIFAR-100 as lossless images, which many mirrors offer instead of the original archive. Classes are
numbered in alphabetical order, as the originals are; records are shuffled, always in the same order.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from swamp.datasets.cifar import CIFAR_10, CIFAR_100, CifarSource
from swamp.files import write_atomic

SIZE = (32, 32)


def main() -> int:
    """Convert what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("destination", type=Path, help="folder for the binary files; made if it does not exist")
    given = parser.parse_args()
    try:
        source = convert(given.source, given.destination)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{given.destination}: use it with --task {source.task} --folder {given.destination}")
    return 0


def convert(source: Path, destination: Path) -> CifarSource:
    """Write the files of the CIFAR with as many classes as `source/train` has folders; returns its description.

    Raises ValueError for a number of classes or images that neither CIFAR has, or an image of another size.
    """
    classes = _classes(source / "train")
    kinds = {kind.classes: kind for kind in (CIFAR_10, CIFAR_100)}
    if len(classes) not in kinds:
        raise ValueError(
            f"{source / 'train'} has {len(classes)} class folders, expected {' or '.join(map(str, kinds))}."
        )
    kind = kinds[len(classes)]
    destination.mkdir(parents=True, exist_ok=True)
    for split, names, records in (
        ("train", kind.train, kind.train_records),
        ("test", (kind.test,), kind.test_records),
    ):
        table = _records(source / split, classes, kind.label_bytes)
        if len(table) != records * len(names):
            raise ValueError(f"{source / split} has {len(table)} images, {kind.task} has {records * len(names)}.")
        for number, name in enumerate(names):
            write_atomic(destination / name, table[number * records : (number + 1) * records].tobytes())
    return kind


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _records(folder: Path, classes: list[str], label_bytes: int) -> np.ndarray:
    """(images, label bytes + pixels) uint8; of two label bytes the first, CIFAR-100's superclass, is 0: not known."""
    if (found := _classes(folder)) != classes:
        raise ValueError(f"{folder} has other class folders than train: {', '.join(sorted({*found} ^ {*classes}))}.")
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    table = np.zeros((len(files), label_bytes + 3 * SIZE[0] * SIZE[1]), np.uint8)
    for row, (path, label) in zip(table, files, strict=True):
        with Image.open(path) as image:
            if image.size != SIZE:
                raise ValueError(f"{path} is {image.size[0]} x {image.size[1]} pixels, expected 32 x 32.")
            row[label_bytes:] = np.asarray(image.convert("RGB")).transpose(2, 0, 1).ravel()
        row[label_bytes - 1] = label
    return np.random.default_rng(0).permutation(table)


if __name__ == "__main__":
    sys.exit(main())
