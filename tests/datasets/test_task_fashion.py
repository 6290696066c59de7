import gzip
import struct
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swamp.datasets import fashion, task_named
from swamp.datasets.cache import checksum_of
from swamp.datasets.fashion import FASHION_MNIST, IdxFile, IdxSource, load_idx, parse_idx, read_idx
from swamp.datasets.problem import DataOptions
from swamp.errors import SwampError
from swamp.training.data import TensorData
from swamp.training.rng import Seed


def idx(*sizes: int, values: bytes) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + values


CONTENTS = {
    "train-images-idx3-ubyte": idx(20, 28, 28, values=bytes(i % 251 for i in range(20 * 784))),
    "train-labels-idx1-ubyte": idx(20, values=bytes(i % 10 for i in range(20))),
    "t10k-images-idx3-ubyte": idx(10, 28, 28, values=bytes(i % 241 for i in range(10 * 784))),
    "t10k-labels-idx1-ubyte": idx(10, values=bytes(range(10))),
}


def source_of(contents: dict[str, bytes]) -> IdxSource:
    files = [IdxFile(name, checksum_of(data, "sha256"), "0" * 64) for name, data in contents.items()]
    nowhere = Path("/nonexistent")
    return replace(
        FASHION_MNIST, files=cast("tuple[IdxFile, IdxFile, IdxFile, IdxFile]", tuple(files)), installed=nowhere
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four tiny files: the images gzipped, the labels plain."""
    place = tmp_path / "data"
    place.mkdir()
    for name, contents in CONTENTS.items():
        if "images" in name:
            (place / f"{name}.gz").write_bytes(gzip.compress(contents))
        else:
            (place / name).write_bytes(contents)
    monkeypatch.setattr(fashion, "FASHION_MNIST", source_of(CONTENTS))
    return place


def test_gzipped_and_plain_files_are_read_and_normalised_after_the_gather(folder: Path, seed: Seed):
    problem = task_named("fashion-mnist")(DataOptions(folder=str(folder), validation=0), seed)
    assert (problem.shape, problem.classes) == ((1, 28, 28), 10)
    train = cast(TensorData, problem.task.train)
    assert cast(torch.Tensor, train.inputs).dtype == torch.uint8
    images, labels = next(problem.task.test.in_order(10))
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[0, 0, 0, 7], torch.tensor((7 / 255 - 0.2860) / 0.3530))
    assert labels.tolist() == list(range(10))


def test_without_a_folder_the_installed_files_are_taken(folder: Path):
    images, *_ = load_idx(replace(source_of(CONTENTS), installed=folder), "")
    assert images.shape == (20, 1, 28, 28)


def test_without_any_files_they_are_downloaded_from_https(monkeypatch: pytest.MonkeyPatch, folder: Path):
    asked: list[tuple[str, str]] = []

    def fetch(url: str, checksum: str, task: str) -> Path:
        asked.append((url, checksum))
        name = url.rpartition("/")[2]
        return folder / name if (folder / name).exists() else folder / name.removesuffix(".gz")

    monkeypatch.setattr(fashion, "download", fetch)
    load_idx(source_of(CONTENTS), "")
    assert len(asked) == 4
    assert all(url.startswith("https://") and url.endswith("ubyte.gz") for url, _ in asked)
    assert {checksum for _, checksum in asked} == {"sha256:" + "0" * 64}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_missing_file_is_named(folder: Path, name: str, seed: Seed):
    for path in folder.glob(f"{name}*"):
        path.unlink()
    with pytest.raises(SwampError, match=f"neither {name}.gz nor {name}"):
        task_named("fashion-mnist")(DataOptions(folder=str(folder)), seed)


def test_a_file_with_one_changed_pixel_is_refused_by_name(folder: Path, seed: Seed):
    path = folder / "t10k-images-idx3-ubyte.gz"
    contents = bytearray(gzip.decompress(path.read_bytes()))
    contents[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(contents)))
    with pytest.raises(SwampError, match=r"t10k-images-idx3-ubyte.gz is not .*SHA-256.*Replace it"):
        task_named("fashion-mnist")(DataOptions(folder=str(folder)), seed)


def test_a_file_that_was_cut_short_is_refused_by_name(folder: Path, seed: Seed):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SwampError, match=r"train-images-idx3-ubyte.gz is not a valid idx file"):
        task_named("fashion-mnist")(DataOptions(folder=str(folder)), seed)


@pytest.mark.parametrize("labels", [idx(20, values=bytes([10] * 20)), idx(19, values=bytes(19))])
def test_labels_that_are_no_classes_or_too_few_are_refused(folder: Path, labels: bytes):
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)
    source = source_of({**CONTENTS, "train-labels-idx1-ubyte": labels})
    with pytest.raises(SwampError, match=r"train-labels-idx1-ubyte has (20|19) labels.*expected 20 labels below 10"):
        load_idx(source, str(folder))


def test_idx_bytes_become_the_array_they_describe():
    assert parse_idx(idx(2, 3, values=bytes(range(6))), 2).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "starts with nothing"),
        (b"\0\0\x0d\x01\0\0\0\1x", "expected 00 00 08 01"),
        (idx(1, 1, values=b"x"), "expected 00 00 08 01"),
        (b"\0\0\x08\x01\0\0", "its header needs 8"),
        (idx(3, values=b"xx"), "has 2 values"),
        (idx(3, values=b"xxxx"), "has 4 values"),
        (idx(0, values=b""), "has no values"),
        (idx(2**32 - 1, values=b"x"), "need 4294967295"),
    ],
)
def test_each_thing_that_can_be_wrong_is_said(contents: bytes, reason: str):
    with pytest.raises(ValueError, match=reason):
        parse_idx(contents, 1)


def try_to_read(folder: Path, contents: bytes, dimensions: int) -> None:
    path = folder / "file"
    path.write_bytes(contents)
    try:
        array = read_idx(path, dimensions)
    except SwampError as error:
        message = str(error)
        assert message.startswith(str(path))
    else:
        assert (array.dtype, array.dim()) == (torch.uint8, dimensions)


@given(st.binary(max_size=64), st.sampled_from([b"", b"\0\0\x08", b"\x1f\x8b\x08\0"]), st.integers(1, 3))
def test_any_bytes_are_an_array_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, prefix: bytes, dimensions: int
):
    folder = tmp_path_factory.getbasetemp()
    try_to_read(folder, prefix + data, dimensions)
    try_to_read(folder, gzip.compress(prefix + data), dimensions)


WHOLE = gzip.compress(idx(2, 2, values=b"abcd"))


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_any_changed_byte_is_an_array_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
):
    folder = tmp_path_factory.getbasetemp()
    try_to_read(folder, WHOLE[:place] + bytes([value]) + WHOLE[place + 1 :], 2)
    try_to_read(folder, WHOLE[:place], 2)


@pytest.mark.skipif(not FASHION_MNIST.installed.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_files_pass_their_checksums_and_have_the_stated_statistics(seed: Seed):
    problem = task_named("fashion-mnist")(DataOptions(validation=0), seed)
    train = cast(TensorData, problem.task.train)
    assert (len(train), len(problem.task.test)) == (60_000, 10_000)
    assert train.targets.bincount().tolist() == [6000] * 10
    pixels = cast(torch.Tensor, train.inputs).flatten().bincount(minlength=256).double()
    values = torch.arange(256) / 255
    mean = (pixels * values).sum() / pixels.sum()
    std = ((pixels * (values - mean) ** 2).sum() / pixels.sum()).sqrt()
    assert abs(float(mean) - 0.2860) < 1e-4
    assert abs(float(std) - 0.3530) < 1e-4
