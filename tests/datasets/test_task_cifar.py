import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from swamp.datasets import cifar, task_named
from swamp.datasets.cache import checksum_of
from swamp.datasets.cifar import CIFAR_10, CIFAR_100, CifarSource, load_cifar, parse_records
from swamp.datasets.problem import DataOptions
from swamp.errors import SwampError
from swamp.training.data import TensorData
from swamp.training.rng import Seed

SMALL_10 = replace(CIFAR_10, train_records=3, test_records=2)
SMALL_100 = replace(CIFAR_100, train_records=4, test_records=2)


def records(source: CifarSource, count: int, first: int = 0) -> bytes:
    """Records whose class is their number and whose pixels are all the number too (coarse label: 7)."""
    coarse = bytes([7] * (source.label_bytes - 1))
    return b"".join(coarse + bytes([n]) + bytes([n]) * 3072 for n in range(first, first + count))


def files_of(source: CifarSource) -> dict[str, bytes]:
    files = {name: records(source, source.train_records) for name in source.train}
    return {**files, source.test: records(source, source.test_records, first=5)}


def archive_of(files: dict[str, bytes], folder: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, contents in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return folder


@pytest.mark.parametrize("source", [SMALL_10, SMALL_100])
@pytest.mark.parametrize("inner", [False, True])
def test_bin_files_are_read_from_the_folder_or_the_archives_folder_in_it(
    tmp_path: Path, source: CifarSource, inner: bool
):
    write(tmp_path / source.folder if inner else tmp_path, files_of(source))
    images, labels, test_images, test_labels = load_cifar(source, str(tmp_path))
    assert images.shape == (len(source.train) * source.train_records, 3, 32, 32)
    assert labels.tolist() == list(range(source.train_records)) * len(source.train)
    assert test_labels.tolist() == [5, 6]
    assert torch.equal(test_images[1], torch.full((3, 32, 32), 6, dtype=torch.uint8))


def test_an_image_is_red_green_blue_row_by_row():
    pixels = bytes([1] * 1024 + [2] * 1024 + [3, 4] + [0] * 1022)
    images, labels = parse_records(b"\x09" + pixels, "x.bin", CIFAR_10, 1)
    assert labels.tolist() == [9]
    assert images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert int(images[0, 2, 0, 1]) == 4


def test_the_class_of_cifar_100_is_the_fine_label():
    _, labels = parse_records(bytes([19, 99]) + bytes(3072), "x.bin", CIFAR_100, 1)
    assert labels.tolist() == [99]


@pytest.mark.parametrize("change", [-1, 1, -3073, 3073])
def test_a_file_of_any_other_size_is_refused_by_name(tmp_path: Path, change: int):
    files = files_of(SMALL_10)
    wrong = files["data_batch_3.bin"]
    files["data_batch_3.bin"] = wrong[:change] if change < 0 else wrong + bytes(change)
    write(tmp_path, files)
    with pytest.raises(SwampError, match=r"data_batch_3.bin has .* expected 3 records of 3073 bytes"):
        load_cifar(SMALL_10, str(tmp_path))


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises(SwampError, match=r"x.bin has a label 10, expected 0 to 9"):
        parse_records(records(CIFAR_10, 1, first=10), "x.bin", CIFAR_10, 1)


def test_a_missing_bin_file_is_named(tmp_path: Path):
    files = files_of(SMALL_10)
    del files["data_batch_4.bin"]
    with pytest.raises(SwampError, match=r"data_batch_4.bin cannot be read"):
        load_cifar(SMALL_10, str(write(tmp_path, files)))


def test_a_folder_without_any_of_it_says_what_was_looked_for(tmp_path: Path):
    (tmp_path / "other").write_text("")
    with pytest.raises(SwampError, match=r"neither data_batch_1.bin .* nor cifar-10-binary.tar.gz"):
        load_cifar(SMALL_10, str(tmp_path))


def archived(tmp_path: Path, source: CifarSource, contents: bytes) -> CifarSource:
    (tmp_path / source.url.rpartition("/")[2]).write_bytes(contents)
    return replace(source, md5=checksum_of(contents, "md5"))


def test_the_archive_is_read_where_it_lies_and_unpacks_nothing(tmp_path: Path):
    files = {**files_of(SMALL_100), "../../escaped.txt": b"x", "fine_label_names.txt": b"apple"}
    source = archived(tmp_path, SMALL_100, archive_of(files, SMALL_100.folder))
    images, labels, _, _ = load_cifar(source, str(tmp_path))
    assert (len(images), labels.tolist()) == (4, [0, 1, 2, 3])
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-binary.tar.gz"]


def cut(contents: bytes) -> bytes:
    return contents[: len(contents) // 2]


def other_folder(contents: bytes) -> bytes:
    del contents
    return archive_of(files_of(SMALL_10), "elsewhere")


def garbage(contents: bytes) -> bytes:
    del contents
    return b"garbage"


@pytest.mark.parametrize("harm", [cut, other_folder, garbage])
def test_an_archive_that_is_cut_or_holds_something_else_is_refused_by_name(
    tmp_path: Path, harm: Callable[[bytes], bytes]
):
    source = archived(tmp_path, SMALL_10, harm(archive_of(files_of(SMALL_10), SMALL_10.folder)))
    with pytest.raises(SwampError, match=r"cifar-10-binary.tar.gz (cannot be read|lacks).*replace it"):
        load_cifar(source, str(tmp_path))


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in (*SMALL_10.train, SMALL_10.test):
            member = tarfile.TarInfo(f"{SMALL_10.folder}/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(member)
    source = archived(tmp_path, SMALL_10, buffer.getvalue())
    with pytest.raises(SwampError, match=r"cannot be read|lacks"):
        load_cifar(source, str(tmp_path))


def test_an_archive_with_another_checksum_is_refused_before_it_is_opened(tmp_path: Path):
    archived(tmp_path, SMALL_10, archive_of(files_of(SMALL_10), SMALL_10.folder))
    with pytest.raises(SwampError, match=r"has the MD5 .* expected c32a1d4ab5d03f1284b67883e8d87530"):
        load_cifar(SMALL_10, str(tmp_path))


def test_without_a_folder_the_archive_is_downloaded_over_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str, str]] = []
    source = archived(tmp_path, SMALL_10, archive_of(files_of(SMALL_10), SMALL_10.folder))

    def fetch(url: str, checksum: str, task: str) -> Path:
        asked.append((url, checksum, task))
        return tmp_path / "cifar-10-binary.tar.gz"

    monkeypatch.setattr(cifar, "download", fetch)
    load_cifar(source, "")
    assert asked == [("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", f"md5:{source.md5}", "cifar-10")]


@pytest.mark.parametrize(("name", "small"), [("cifar-10", SMALL_10), ("cifar-100", SMALL_100)])
def test_the_task_has_the_right_shape_and_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: Seed, name: str, small: CifarSource
):
    monkeypatch.setattr(cifar, "CIFAR_10" if name == "cifar-10" else "CIFAR_100", small)
    write(tmp_path, files_of(small))
    problem = task_named(name)(DataOptions(folder=str(tmp_path)), seed)
    assert (problem.shape, problem.classes) == ((3, 32, 32), small.classes)
    train = cast(TensorData, problem.task.train)
    assert cast(torch.Tensor, train.inputs).dtype == torch.uint8
    images, _ = next(train.shuffled(2, seed, 0))
    assert (images.shape, images.dtype) == ((2, 3, 32, 32), torch.float32)
