import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swamp.errors import CorruptFile, SwampError
from swamp.files import load_tensors, save_tensors
from swamp.masks import Mask

shapes = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)


def random_mask(layers: dict[str, tuple[int, ...]], seed: int = 0) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    return Mask({name: torch.rand(shape, generator=generator) < 0.5 for name, shape in layers.items()})


@given(st.dictionaries(st.text(min_size=1, max_size=8), shapes, max_size=3), st.integers(0, 9))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mask_of_any_shape_comes_back_from_its_file(
    tmp_path: Path, layers: dict[str, tuple[int, ...]], seed: int
) -> None:
    mask = random_mask({name: shape for name, shape in layers.items() if name != "__metadata__"}, seed)
    mask.save(tmp_path / "mask.safetensors")
    loaded = Mask.load(tmp_path / "mask.safetensors")
    assert loaded == mask
    assert list(loaded) == list(mask), "the order breaks ties between layers"
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].shape == tensor.shape for name, tensor in mask.items()
    )


@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 17])
def test_sizes_around_whole_bytes_come_back(tmp_path: Path, size: int) -> None:
    for active in (torch.ones(size, dtype=torch.bool), torch.arange(size) % 3 == 0):
        Mask({"w": active}).save(str(tmp_path / "mask"))
        assert torch.equal(Mask.load(str(tmp_path / "mask"))["w"], active)


def test_a_transposed_mask_comes_back() -> None:
    active = torch.tensor([[1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    assert Mask({"w": active.t()}) == Mask({"w": active.t().contiguous()})


def test_the_file_takes_one_bit_a_weight(tmp_path: Path) -> None:
    mask = random_mask({"w": (1000, 803)})
    mask.save(tmp_path / "mask")
    assert math.ceil(803_000 / 8) < (tmp_path / "mask").stat().st_size < 803_000 / 8 + 500


def test_a_flipped_bit_anywhere_is_an_error_or_the_same_mask(tmp_path: Path) -> None:
    mask, path = random_mask({"a": (3, 7), "b": (8,)}), tmp_path / "mask"
    mask.save(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        for flip in (1, 32, 255):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            try:
                assert Mask.load(path) == mask
            except SwampError:
                refused += 1
    # What may pass unseen: blanks that pad the header, and the three spare bits of layer a.
    assert refused > 0.9 * 3 * len(whole)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask"
    random_mask({"a": (3, 7)}).save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SwampError, match="not a complete safetensors file"):
            Mask.load(path)


def test_a_flipped_weight_is_told_from_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "mask"
    random_mask({"a": (16,)}).save(path)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CorruptFile, match="do not match its own checksum"):
        Mask.load(path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(safetensors.torch.save({"w": torch.zeros(3)}))
    with pytest.raises(CorruptFile, match="not a mask file"):
        Mask.load(path)
    save_tensors(path, {"w": torch.zeros(3)}, {"format": "swamp-ticket-1"})
    with pytest.raises(CorruptFile, match="'swamp-ticket-1'"):
        Mask.load(path)
    path.write_text("not tensors at all")
    with pytest.raises(SwampError, match="not a complete safetensors file"):
        Mask.load(path)
    with pytest.raises(SwampError, match="does not exist"):
        Mask.load(tmp_path / "absent")


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": "{"},
        {"shapes": "[1]"},
        {"shapes": "null"},
        {"shapes": '{"a": [3, 7], "b": [1]}'},
        {"shapes": '{"a": [2, 7]}'},
        {"shapes": '{"a": [21]}'},
        {"shapes": '{"a": ["x"]}'},
        {"shapes": '{"a": [-3, -7]}'},
        {"shapes": "{}"},
        {"digest": "0" * 16},
    ],
)
def test_a_description_that_does_not_fit_the_bits_is_refused(tmp_path: Path, change: dict[str, str]) -> None:
    path = tmp_path / "mask"
    random_mask({"a": (3, 7)}).save(path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {**metadata, **change})
    with pytest.raises(CorruptFile, match="is damaged"):
        Mask.load(path)


@pytest.mark.parametrize("lost", ["shapes", "digest"])
def test_a_missing_description_is_refused(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "mask"
    random_mask({"a": (3, 7)}).save(path)
    tensors, metadata = load_tensors(path)
    del metadata[lost]
    save_tensors(path, tensors, metadata)
    with pytest.raises(CorruptFile, match="is damaged"):
        Mask.load(path)


@pytest.mark.parametrize("foreign", [torch.zeros(3), torch.zeros(3, dtype=torch.int8), torch.zeros(3).bool()])
def test_bits_of_another_type_and_tensors_too_many_are_refused(tmp_path: Path, foreign: torch.Tensor) -> None:
    path = tmp_path / "mask"
    random_mask({"a": (3, 7)}).save(path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, {**tensors, "extra": foreign}, metadata)
    with pytest.raises(CorruptFile, match="is damaged"):
        Mask.load(path)
    save_tensors(path, {"a": foreign}, metadata)
    with pytest.raises(CorruptFile, match="is damaged"):
        Mask.load(path)
