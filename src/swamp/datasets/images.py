"""Image files, decoded one at a time with Pillow."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.optional import need

_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read_image(path: Path) -> Tensor:
    """(3, H, W) uint8 at the size stored. Raises SwampError for a file that is no whole image."""
    return _tensor(_open(path, lambda image: image.convert("RGB")))


def read_fitted(path: Path, size: int) -> Tensor:
    """(3, size, size) uint8: the largest centred square, resized. Raises SwampError for a file that is no image."""
    fit = need("PIL.ImageOps", "swamp[images]").fit
    bilinear = need("PIL.Image", "swamp[images]").Resampling.BILINEAR
    return _tensor(_open(path, lambda image: fit(image.convert("RGB"), (size, size), bilinear)))


def check_images(paths: list[Path]) -> None:
    """Read the headers alone, so that a file which is no image is found before training."""
    for path in paths:
        _open(path, lambda image: image.size)


def image_paths(folder: Path) -> list[Path]:
    """The image files directly in `folder`, by name; hidden and other files are passed over."""
    names = [entry.name for entry in _entries(folder) if entry.is_file()]
    return [folder / name for name in names if name.lower().endswith(_ENDINGS)]


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted: the position of each is its class number."""
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        found = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise SwampError(f"{folder} cannot be read as a folder ({error.strerror}); check its name and rights.") from (
            error
        )
    return sorted(found, key=lambda entry: entry.name)


def _open(path: Path, use: Callable[[Any], Any]) -> Any:
    images = need("PIL.Image", "swamp[images]")
    try:
        with images.open(path) as image:
            return use(image)
    except Exception as error:
        # Pillow's decoders raise whatever befalls them (OSError, SyntaxError, ValueError, struct.error, ...).
        raise SwampError(f"{path} is not a whole image ({error}); replace or remove it.") from error


def _tensor(image: Any) -> Tensor:
    return torch.as_tensor(np.array(image, np.uint8)).permute(2, 0, 1).contiguous()
