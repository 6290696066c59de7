import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from torch import Tensor

import swamp.datasets.cache
import swamp.files
from swamp.datasets.cache import cache_folder, cached, checksum_of, download, given_folder
from swamp.errors import SwampError, need
from swamp.files import digest, load_tensors


class Maker:
    """Makes the tensor and counts how often it had to."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, Tensor]:
        self.times += 1
        return {"numbers": torch.arange(10.0)}


def test_what_was_made_once_is_read_afterwards(cache: Path):
    make = Maker()
    first, second = cached("a", make), cached("a", make)
    assert make.times == 1
    assert (cache / "a.safetensors").is_file()
    assert torch.equal(first["numbers"], second["numbers"])


@pytest.mark.parametrize("harm", ["cut", "one bit", "garbage", "folder"])
def test_a_damaged_cache_is_made_anew(cache: Path, harm: str):
    make = Maker()
    cached("a", make)
    path = cache / "a.safetensors"
    whole = path.read_bytes()
    if harm == "cut":
        path.write_bytes(whole[:-3])
    elif harm == "one bit":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif harm == "garbage":
        path.write_bytes(b"garbage")
    else:
        path.unlink()
        path.mkdir()
    assert torch.equal(cached("a", make)["numbers"], torch.arange(10.0))
    assert make.times == 2
    if harm != "folder":
        assert torch.equal(load_tensors(path)[0]["numbers"], torch.arange(10.0))


def test_tensors_are_hashed_once_when_they_are_saved_and_once_when_they_are_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    hashed: list[list[str]] = []

    def counted(tensors: Mapping[str, Tensor]) -> str:
        hashed.append([*tensors])
        return digest(tensors)

    for module in (swamp.files, swamp.datasets.cache):
        monkeypatch.setattr(module, "digest", counted, raising=False)
    make = Maker()
    cached("a", make)
    assert hashed == [["numbers"]]
    cached("a", make)
    assert (make.times, hashed) == (1, [["numbers"]] * 2)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A file where the folder should be: not even root can make a folder in it.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWAMP_CACHE", str(tmp_path / "file" / "cache"))
    make = Maker()
    cached("a", make)
    assert torch.equal(cached("a", make)["numbers"], torch.arange(10.0))
    assert make.times == 2


def test_without_the_variable_the_cache_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SWAMP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder().name == "swamp"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A server of the file "data.gz" with the contents b"published"."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "data.gz").write_bytes(b"published")
    server = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_is_checked_kept_and_not_repeated(site: str, cache: Path, tmp_path: Path):
    checksum = f"sha256:{checksum_of(b'published', 'sha256')}"
    assert download(f"{site}/data.gz", checksum, "some-task").read_bytes() == b"published"
    (tmp_path / "site" / "data.gz").unlink()
    assert download(f"{site}/data.gz", checksum, "some-task") == cache / "some-task" / "data.gz"


@pytest.mark.parametrize("name", ["data.gz", "absent.gz"])
def test_a_download_that_is_wrong_or_absent_says_where_the_file_may_be_put(site: str, cache: Path, name: str):
    with pytest.raises(SwampError, match=f"some-task: could not download .*{name}.* Put {name} into a folder"):
        download(f"{site}/{name}", f"sha256:{'0' * 64}", "some-task")
    assert not (cache / "some-task" / name).exists()


def test_a_folder_that_is_missing_empty_or_a_file_is_refused_by_name(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, reason in (("missing", "No such file"), ("empty", "is empty"), ("file", "Not a directory")):
        with pytest.raises(SwampError, match=f"some-task: .*{name}.*{reason}"):
            given_folder("some-task", str(tmp_path / name))


def test_a_library_that_is_absent_is_named_with_the_command_that_installs_it():
    with pytest.raises(SwampError, match=r"needs no_such_library.*pip install 'swamp\[some\]'"):
        need("no_such_library.part", "swamp[some]")
