"""Folders of images become the binary files that the CIFAR tasks read."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swamp.datasets.cifar import CIFAR_10, CIFAR_100, load_cifar

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import cifar_binary


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Ten classes with six training and two test images each; every image has one colour of its own."""
    for name, kind in (("CIFAR_10", CIFAR_10), ("CIFAR_100", CIFAR_100)):
        each = kind.classes // 10
        small = replace(kind, train_records=60 * each // len(kind.train), test_records=20 * each)
        monkeypatch.setattr(cifar_binary, name, small)
    source = tmp_path / "source"
    for split, count in (("train", 6), ("test", 2)):
        for label in range(10):
            folder = source / split / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                colour = (label, number, 100 if split == "train" else 200)
                Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
    return source


def test_pixels_and_labels_come_back_in_a_fixed_shuffled_order(images, tmp_path):
    kind = cifar_binary.convert(images, tmp_path / "binary")
    train, labels, test, test_labels = load_cifar(kind, str(tmp_path / "binary"))
    assert (train.shape, test.shape) == ((60, 3, 32, 32), (20, 3, 32, 32))
    assert np.array_equal(train[:, 0, 0, 0], labels)
    assert np.array_equal(test[:, 0, 31, 31], test_labels)
    assert {int(value) for value in train[:, 2].unique()} == {100}
    assert sorted(labels.tolist()) == sorted([*range(10)] * 6) != labels.tolist()
    cifar_binary.convert(images, tmp_path / "again")
    assert all(
        (tmp_path / "again" / one.name).read_bytes() == one.read_bytes() for one in (tmp_path / "binary").iterdir()
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda images: (images / "train" / "class-0" / "0.png").unlink(), "has 59 images, cifar-10 has 60"),
        (lambda images: (images / "train" / "more").mkdir(), "has 11 class folders, expected 10 or 100"),
        (lambda images: (images / "test" / "class-3").rename(images / "test" / "other"), "class-3, other"),
        (lambda images: Image.new("RGB", (28, 32)).save(images / "test" / "class-1" / "0.png"), "28 x 32 pixels"),
    ],
)
def test_what_is_no_cifar_is_refused_with_exit_code_2(spoil, message, images, tmp_path, monkeypatch, capsys):
    spoil(images)
    monkeypatch.setattr(sys, "argv", ["cifar_binary.py", str(images), str(tmp_path / "binary")])
    assert cifar_binary.main() == 2
    assert message in capsys.readouterr().err
