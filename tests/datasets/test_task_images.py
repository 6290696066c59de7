import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from swamp.datasets import images as images_module
from swamp.datasets import task_named
from swamp.datasets.problem import DataOptions
from swamp.errors import SwampError
from swamp.training.data import Data, DatasetData, TensorData
from swamp.training.rng import Seed


def draw(path: Path, colour: tuple[int, int, int] | int, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Two classes with three training images each and two test images, one of them grey."""
    root = tmp_path / "tiny-imagenet-200"
    for number, name in enumerate(("n01", "n02")):
        for image in range(3):
            draw(root / "train" / name / "images" / f"{name}_{image}.JPEG", (100 * number, 50, 10 * image))
    draw(root / "val" / "images" / "val_0.JPEG", (100, 50, 0))
    draw(root / "val" / "images" / "val_1.JPEG", 80)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t63\t63\nval_1.JPEG\tn01\t0\t0\t63\t63\n")
    return root


def test_tiny_imagenet_is_read_with_classes_in_order_of_their_names(tiny: Path, seed: Seed):
    problem = task_named("tiny-imagenet")(DataOptions(folder=str(tiny), validation=0), seed)
    assert (problem.shape, problem.classes) == ((3, 64, 64), 2)
    train, test = cast(TensorData, problem.task.train), cast(TensorData, problem.task.test)
    assert train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.targets.tolist() == [1, 0]
    images = cast(torch.Tensor, train.inputs)
    assert images.dtype == torch.uint8
    assert (images[4, :, 5, 5].int() - torch.tensor([100, 50, 10])).abs().max() <= 2
    assert cast(torch.Tensor, test.inputs)[1, :, 5, 5].tolist() == [80, 80, 80]


def test_tiny_imagenet_is_decoded_once_and_again_where_its_files_change(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, seed: Seed
):
    options = DataOptions(folder=str(tiny.parent))
    task_named("tiny-imagenet")(options, seed)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as without:
        without.setattr(images_module, "read_image", None)
        task_named("tiny-imagenet")(options, seed)
    draw(tiny / "train" / "n01" / "images" / "n01_0.JPEG", (1, 2, 250))
    changed = cast(TensorData, task_named("tiny-imagenet")(replace(options, validation=0), seed).task.train)
    assert cast(torch.Tensor, changed.inputs)[0, 2, 5, 5] >= 248
    draw(tiny / "train" / "n01" / "images" / "n01_9.JPEG", (1, 2, 3))
    assert len(task_named("tiny-imagenet")(options, seed).task.train) == 6  # seven, of which one is held out


@pytest.mark.parametrize(
    ("line", "reason"),
    [("val_9.JPEG\tn01", "val_9"), ("val_0.JPEG\tn03", "n03"), ("val_0.JPEG", "val_0"), ("", "''")],
)
def test_a_wrong_annotation_is_named_with_its_line(tiny: Path, seed: Seed, line: str, reason: str):
    table = tiny / "val" / "val_annotations.txt"
    table.write_text(f"val_0.JPEG\tn02\n{line}\n")
    with pytest.raises(SwampError, match=f"line 2 of .*val_annotations.txt.*{reason}"):
        task_named("tiny-imagenet")(DataOptions(folder=str(tiny)), seed)


def test_a_damaged_or_odd_sized_image_is_named(tiny: Path, seed: Seed):
    path = tiny / "train" / "n02" / "images" / "n02_1.JPEG"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SwampError, match=r"n02_1.JPEG is not a complete image"):
        task_named("tiny-imagenet")(DataOptions(folder=str(tiny)), seed)
    draw(path, (1, 2, 3), size=(32, 64))
    with pytest.raises(SwampError, match=r"n02_1.JPEG is 32 x 64 pixels, expected 64 x 64"):
        task_named("tiny-imagenet")(DataOptions(folder=str(tiny)), seed)


def test_a_place_without_tiny_imagenet_says_where_it_comes_from(tmp_path: Path, seed: Seed):
    (tmp_path / "other").mkdir()
    for folder in ("", str(tmp_path)):
        with pytest.raises(SwampError, match=r"has both train and .*tiny-imagenet-200.zip"):
            task_named("tiny-imagenet")(DataOptions(folder=folder), seed)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve training and four test pictures of various sizes, in two classes."""
    root = tmp_path / "pictures"
    for number, name in enumerate(("cat", "dog")):
        for image in range(6):
            draw(root / "train" / name / f"{image}.png", (number * 200, 20 * image, 7), size=(70 + image, 64 - image))
        for image in range(2):
            draw(root / "test" / name / f"{image}.png", (number * 200, 20 * image, 9), size=(8, 30))
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    return root


def batches(data: Data, seed: Seed, epoch: int = 0, first: int = 0) -> list[Any]:
    return [tensor for batch in data.shuffled(4, seed, epoch, first) for tensor in batch]


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_pictures_of_any_size_become_64_x_64(pictures: Path, seed: Seed):
    problem = task_named("image-folder")(DataOptions(folder=str(pictures), validation=0.25), seed)
    assert (problem.shape, problem.classes) == ((3, 64, 64), 2)
    task = problem.task
    assert task.validation is not None
    assert (len(task.train), len(task.validation), len(task.test)) == (9, 3, 4)
    ((images, targets),) = task.test.in_order(10)
    assert (images.shape, images.dtype, targets.tolist()) == ((4, 3, 64, 64), torch.float32, [0, 0, 1, 1])
    torch.testing.assert_close(images[3, :, 9, 9], torch.tensor([1.3069, -1.6856, -1.6476]), atol=1e-3, rtol=0)


def test_a_photograph_is_turned_upright(pictures: Path):
    path = pictures / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored first row is the right edge
    image = Image.new("L", (64, 64))
    image.paste(255, (0, 0, 64, 16))
    image.save(path, exif=exif)
    found = images_module.read_fitted(path, 64)
    assert found[0, :, 56].float().mean() > 250
    assert found[0, :, 40].float().mean() < 5


@pytest.mark.parametrize(("mode", "ending"), [("I;16", "png"), ("I", "tif"), ("F", "tif")])
def test_images_of_more_than_8_bits_are_refused_as_they_would_be_clipped(
    pictures: Path, seed: Seed, mode: str, ending: str
):
    Image.new(mode, (8, 8), 1).save(pictures / "train" / "cat" / f"deep.{ending}")
    with pytest.raises(SwampError, match=f"deep.{ending} .*more than 8 bits, mode {mode}: scale them"):
        task_named("image-folder")(DataOptions(folder=str(pictures)), seed)


def test_images_in_subfolders_and_of_every_format_count(pictures: Path, seed: Seed):
    draw(pictures / "train" / "cat" / "more" / "a.png", 3)
    draw(pictures / "train" / "cat" / ".hidden" / "b.png", 3)
    draw(pictures / "train" / "dog" / "c.jp2", 3)
    task = task_named("image-folder")(DataOptions(folder=str(pictures), validation=0), seed).task
    assert len(task.train) == 14
    (pictures / "train" / "dog" / "phone.HEIC").write_bytes(b"ftypheic")
    with pytest.raises(SwampError, match=r"phone.HEIC is not a complete image"):
        task_named("image-folder")(DataOptions(folder=str(pictures)), seed)


def test_no_picture_is_both_trained_on_and_held_out(pictures: Path, seed: Seed):
    task = task_named("image-folder")(DataOptions(folder=str(pictures), validation=0.5), seed).task
    train, held_out = (cast(DatasetData, data).dataset for data in (task.train, task.validation))
    names = [path for data in (train, held_out) for path, _ in cast(Any, data).files]
    assert len(set(names)) == len(names) == 12


def test_batches_are_a_function_of_seed_and_epoch_for_any_number_of_workers(pictures: Path, seed: Seed):
    alone = task_named("image-folder")(DataOptions(folder=str(pictures), validation=0), seed).task.train
    helped = task_named("image-folder")(DataOptions(folder=str(pictures), validation=0, workers=1), seed).task.train
    assert same(batches(alone, seed), batches(helped, seed))
    assert not same(batches(alone, seed), batches(alone, seed, epoch=1))
    assert not same(batches(alone, seed), batches(alone, Seed(8)))


def test_an_epoch_resumed_in_the_middle_has_the_same_remaining_batches(pictures: Path, seed: Seed):
    train = task_named("image-folder")(DataOptions(folder=str(pictures), validation=0), seed).task.train
    assert same(batches(train, seed)[2:], batches(train, seed, first=1))


def test_each_batch_is_augmented_by_a_stream_of_its_own(pictures: Path, seed: Seed):
    train = task_named("image-folder")(DataOptions(folder=str(pictures), validation=0), seed).task.train
    streams: list[int] = []

    def note(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        streams.append(generator.initial_seed())
        return images

    noting = replace(cast(DatasetData, train), augment=note)
    assert not noting.augment_draws
    streams.clear()
    batches(noting, seed)
    batches(noting, seed, epoch=1)
    assert len(set(streams)) == len(streams) == 6


def test_reading_pictures_leaves_the_global_generator_as_it_was(pictures: Path, seed: Seed):
    train = task_named("image-folder")(DataOptions(folder=str(pictures)), seed).task.train
    before = torch.get_rng_state()
    batches(train, seed)
    assert torch.equal(before, torch.get_rng_state())


def test_with_both_test_and_val_no_training_picture_is_held_out(pictures: Path, seed: Seed):
    for name in ("cat", "dog"):
        draw(pictures / "val" / name / "0.png", (1, 2, 3))
    task = task_named("image-folder")(DataOptions(folder=str(pictures)), seed).task
    assert task.validation is not None
    assert (len(task.train), len(task.validation), len(task.test)) == (12, 2, 4)


def test_val_alone_is_the_test_set(pictures: Path, seed: Seed):
    (pictures / "test").rename(pictures / "val")
    task = task_named("image-folder")(DataOptions(folder=str(pictures), validation=0), seed).task
    assert (task.validation, len(task.test)) == (None, 4)


def test_each_thing_that_can_be_wrong_with_the_folder_is_said_before_training(pictures: Path, seed: Seed):
    def fails(reason: str, folder: Path = pictures) -> None:
        with pytest.raises(SwampError, match=reason):
            task_named("image-folder")(DataOptions(folder=str(folder)), seed)

    with pytest.raises(SwampError, match="pass a data folder"):
        task_named("image-folder")(DataOptions(), seed)
    fails(r"needs the folders train and test \(or val\); it has \[\]", pictures / "train")
    (pictures / "test" / "cow").mkdir()
    fails("only in one of them: cow")
    (pictures / "train" / "cow").mkdir()
    fails("train/cow has no images")
    (pictures / "train" / "cow").rmdir()
    (pictures / "test" / "cow").rmdir()
    (pictures / "train" / "cat" / "9.png").write_bytes(b"no picture")
    fails("9.png is not a complete image")


@pytest.mark.parametrize("name", ["tiny-imagenet", "image-folder"])
def test_without_pillow_the_error_names_the_extra(
    tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, seed: Seed, name: str
):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    folder = tiny if name == "tiny-imagenet" else pictures
    with pytest.raises(SwampError, match=r"pip install 'swamp\[images\]'"):
        task_named(name)(DataOptions(folder=str(folder)), seed)
