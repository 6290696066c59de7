"""The user's cache folder for generated and downloaded data. It may be deleted at any time."""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from torch import Tensor

from swamp.errors import SwampError, first_line, need
from swamp.files import load_tensors, save_tensors


def cache_folder() -> Path:
    """$SWAMP_CACHE, or the default cache folder of the system (on Linux ~/.cache/swamp)."""
    chosen = os.environ.get("SWAMP_CACHE", "")
    return Path(chosen).expanduser() if chosen else Path(need("pooch", "pooch").os_cache("swamp"))


def cached(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the cache file `name`.safetensors; generated again if it is missing, damaged or unreadable.

    If the cache cannot be written, the tensors are generated in every run.
    """
    path = cache_folder() / f"{name}.safetensors"
    try:
        return load_tensors(path)[0]
    except SwampError:
        pass
    tensors = make()
    with contextlib.suppress(OSError, SwampError):
        save_tensors(path, tensors)
    return tensors


def download(url: str, checksum: str, task: str) -> Path:
    """The file at `url` in the cache folder of `task`, downloaded unless a complete copy is there.

    checksum: "sha256:..." or "md5:...". Raises SwampError if the download fails; and before any request for a url
    that is not https (except on this machine) or has no checksum.
    """
    place = urlsplit(url)
    if place.scheme != "https" and place.hostname not in ("127.0.0.1", "localhost"):
        raise SwampError(f"{task}: {url} is not downloaded: only https urls are, which cannot be altered in transit.")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", checksum):
        raise SwampError(
            f"{task}: {url} is not downloaded without a checksum (sha256:... or md5:...), got {checksum!r}."
        )
    name = url.rpartition("/")[2]
    folder = cache_folder() / task
    try:
        return Path(need("pooch", "pooch").retrieve(url, known_hash=checksum, fname=name, path=folder))
    except (OSError, ValueError) as error:
        raise SwampError(
            f"{task}: could not download {url} to {folder} ({first_line(error)}). Put {name} into a folder "
            "and pass it as the data folder (or set SWAMP_CACHE if the cache cannot be written)."
        ) from error


def checksum_of(data: bytes, algorithm: str) -> str:
    """Checksum of `data` in hexadecimal digits; algorithm: "sha256" or "md5"."""
    return hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()


def given_folder(task: str, folder: str) -> Path:
    """The data folder given by the user. Raises SwampError unless it exists, is readable and is not empty."""
    path = Path(folder).expanduser()
    try:
        empty = next(path.iterdir(), None) is None
    except OSError as error:
        raise SwampError(f"{task}: {path} is not a readable folder ({error.strerror}); check the path.") from (error)
    if empty:
        raise SwampError(f"{task}: the folder {path} is empty; put the data there or choose another folder.")
    return path
