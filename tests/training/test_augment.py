import pytest
import torch

from swamp.training.augment import crop_flip, shift_scale_noise


def cropped_by_hand(images: torch.Tensor, padding: int, flip: bool, seed: int) -> torch.Tensor:
    """Pixel by pixel, from the same draws."""
    generator = torch.Generator().manual_seed(seed)
    count, channels, height, width = images.shape
    down, right = torch.randint(0, 2 * padding + 1, (2, count), generator=generator).tolist()
    flips = torch.randint(0, 2, (count,), generator=generator).tolist() if flip else [0] * count
    out = torch.zeros_like(images)
    for n in range(count):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    row = i + down[n] - padding
                    column = (width - 1 - j if flips[n] else j) + right[n] - padding
                    if 0 <= row < height and 0 <= column < width:
                        out[n, c, i, j] = images[n, c, row, column]
    return out


@pytest.mark.parametrize(("padding", "flip"), [(0, True), (1, False), (2, True)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_equals_a_loop_over_pixels(padding: int, flip: bool, dtype: torch.dtype):
    images = torch.arange(1, 1 + 12 * 2 * 3 * 4).remainder(251).view(12, 2, 3, 4).to(dtype)
    augmented = crop_flip(padding, flip)(images, torch.Generator().manual_seed(5))
    assert augmented.dtype == dtype
    assert torch.equal(augmented, cropped_by_hand(images, padding, flip, 5))


def test_crop_flip_takes_images_of_any_memory_layout():
    images = torch.rand(5, 3, 4, 4)
    last = images.to(memory_format=torch.channels_last)
    draws = [crop_flip(1)(batch, torch.Generator().manual_seed(0)) for batch in (images, last, last[:, [2, 1, 0]])]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2][:, [2, 1, 0]])


def test_crop_flip_reaches_every_shift_and_both_directions():
    images = torch.zeros(400, 1, 3, 3)
    images[:, 0, 1, 1] = 1
    images[:, 0, 1, 2] = 2
    crops = crop_flip(1)(images, torch.Generator().manual_seed(0))
    centres = {(int(c[0].eq(1).nonzero()[0, 0]), int(c[0].eq(1).nonzero()[0, 1])) for c in crops}
    assert centres == {(i, j) for i in range(3) for j in range(3)}
    middle = [c[0] for c in crops if c[0, 1, 1] == 1]
    assert {float(c[1, 2]) for c in middle} == {0.0, 2.0}


def test_shift_is_circular_and_by_at_most_shift():
    signals = torch.arange(6.0).expand(200, 6)
    shifted = shift_scale_noise(shift=2, scale=0, noise=0)(signals, torch.Generator().manual_seed(0))
    expected = {tuple(torch.roll(torch.arange(6.0), -s).tolist()) for s in range(-2, 3)}
    assert {tuple(row.tolist()) for row in shifted} == expected


def test_scale_stays_within_its_bounds_and_is_one_number_a_signal():
    signals = torch.ones(500, 4, dtype=torch.float64)
    scaled = shift_scale_noise(shift=0, scale=0.2, noise=0)(signals, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    torch.randint(0, 1, (500, 1), generator=generator)
    factor = 1 + 0.2 * (2 * torch.rand((500, 1), generator=generator) - 1)
    assert scaled.dtype == torch.float64
    assert torch.equal(scaled, factor.double().expand(500, 4))
    assert 0.8 <= scaled.min() < 0.81
    assert 1.19 < scaled.max() <= 1.2


def test_noise_has_the_standard_deviation_asked_for():
    noisy = shift_scale_noise(shift=1, scale=0, noise=0.5)(torch.zeros(1000, 20), torch.Generator().manual_seed(0))
    assert abs(float(noisy.std()) - 0.5) < 0.02
