import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from swamp.errors import SwampError, as_swamp_error, final_line, first_line, type_and_message, unknown
from swamp.files import (
    digest,
    load_tensors,
    make_folder,
    parse_json,
    read_text,
    remove_unfinished,
    save_tensors,
    write_atomic,
)


def test_a_file_is_written_whole_with_its_directories(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_file_has_the_rights_that_the_user_gives_to_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"shared")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_the_old_file_stays_whole_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, fails, full)
    with pytest.raises(SwampError, match=r"could not write .*file: No space left on device.*free disk space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"], "litter"


def test_an_interrupt_while_writing_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"], "litter"


@pytest.mark.slow
def test_the_old_file_stays_whole_when_the_kernel_stops_the_write(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    # A real refusal in the middle of a write, which only a process of its own can have.
    script = f"""
import resource, signal, sys
from pathlib import Path
from swamp.errors import SwampError
from swamp.files import write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_atomic(Path({str(path)!r}), bytes(1_000_000))
except SwampError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert "could not write" in done.stdout
    assert "File too large" in done.stdout
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"], "litter"


def test_what_a_killed_process_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cycle"
    folder.mkdir()
    for name in (".gitignore", ".mask.abcd", "mask.0123abcd"):
        (folder / name).write_text("the user's own")
    # Killed where no `finally` runs: the name of the half-written file is the real one.
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    monkeypatch.setattr(os, "replace", lambda *_: None)
    write_atomic(folder / "mask", b"half")
    monkeypatch.undo()
    assert len(list(folder.iterdir())) == 4
    remove_unfinished(tmp_path)
    assert sorted(entry.name for entry in folder.iterdir()) == [".gitignore", ".mask.abcd", "mask.0123abcd"]


def test_a_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file")
    for path in (tmp_path / "occupied" / "file", tmp_path / "occupied" / "below" / "file"):
        with pytest.raises(SwampError, match=r"could not write .*occupied is a file, not a folder"):
            write_atomic(path, b"data")


def test_a_directory_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    for folder in (tmp_path / "file", Path(), Path("/")):
        with pytest.raises(SwampError, match=r"could not write .*: it is a folder"):
            write_atomic(folder, b"data")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"], "litter"


def test_an_error_without_words_still_has_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("the cable fell out")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SwampError, match="the cable fell out"):
        write_atomic(tmp_path / "file", b"data")


def test_a_system_that_cannot_sync_a_directory_still_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_atomic(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"


def test_file_and_directory_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        order.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def noted_replace(*paths: Any) -> None:
        order.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_atomic(tmp_path / "file", b"data")
    assert order == ["file", "rename", "directory"]


def test_tensors_and_metadata_come_back_bit_for_bit(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "plain": weight,
        "tied": weight,
        "transposed": weight.t(),
        "row": weight[1],
        "trained": weight.clone().requires_grad_(),
        "bfloat": weight.bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "bool": weight > 2,
    }
    save_tensors(tmp_path / "file", tensors, {"format": "test", "text": "äöü\n"})
    loaded, metadata = load_tensors(tmp_path / "file")
    assert metadata == {"format": "test", "text": "äöü\n"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_tensors_without_metadata_come_back(tmp_path: Path) -> None:
    save_tensors(tmp_path / "file", {"w": torch.ones(2)})
    assert load_tensors(tmp_path / "file")[1] == {}


def test_missing_damaged_and_foreign_files_have_different_errors(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(SwampError, match="does not exist"):
        load_tensors(path)
    for content in (b"", b"text", b"\xff" * 64, bytes(64)):
        path.write_bytes(content)
        with pytest.raises(SwampError, match="not a complete safetensors file"):
            load_tensors(path)
    with pytest.raises(SwampError, match="not a complete safetensors file"):
        load_tensors(tmp_path)


def test_a_file_of_another_user_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("safetensors.safe_open", refuse)
    with pytest.raises(SwampError, match="cannot be read") as raised:
        load_tensors(tmp_path / "file")
    assert "delete" not in str(raised.value)


def test_the_digest_sees_names_types_shapes_and_bits_but_not_order_or_layout() -> None:
    ones = torch.ones(2, 3)
    one = digest({"a": ones, "b": ones})
    assert len(one) == 16
    assert digest({"b": ones, "a": ones}) == one
    assert digest({"a": torch.ones(3, 2).t(), "b": ones.requires_grad_()}) == one
    changed = ones.detach().clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(2.0))
    others = [
        digest({"a": ones, "c": ones}),
        digest({"a": ones}),
        digest({"a": ones, "b": ones.reshape(3, 2)}),
        digest({"a": ones, "b": ones.view(torch.int32)}),
        digest({"a": ones, "b": changed}),
    ]
    assert len({one, *others}) == 6


def test_the_digest_takes_every_kind_of_tensor() -> None:
    kinds = {
        "bf16": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(1),
        "none": torch.ones(0),
        "bit": torch.tensor([True]),
    }
    assert digest(kinds) == digest({name: tensor.clone() for name, tensor in kinds.items()})


def test_an_unknown_name_comes_with_the_nearest_ones() -> None:
    assert str(unknown("score", "magnitud", ["random", "magnitude"])) == (
        "unknown score 'magnitud'. Did you mean magnitude? Choose one of: magnitude, random."
    )
    assert (
        str(unknown("score", "zzz", ["random", "magnitude"]))
        == "unknown score 'zzz'. Choose one of: magnitude, random."
    )


def test_a_new_folder_is_synced_with_the_one_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    make_folder(tmp_path / "run" / "cycle-00")
    assert synced == [tmp_path.name, "run"]
    make_folder(tmp_path / "run" / "cycle-00")
    assert synced == [tmp_path.name, "run"], "nothing was made"


def test_a_folder_that_cannot_be_synced_on_a_full_disk_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def full(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SwampError, match="No space left"):
        write_atomic(tmp_path / "file", b"data")


def test_halves_of_one_file_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in (".analysis.jsonl.0123abcd", ".metrics.jsonl.0123abcd", ".analysis.jsonl.lock"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path / "analysis.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".analysis.jsonl.lock", ".metrics.jsonl.0123abcd"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/x/lock"), "/runs/x/lock: No space left"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system. Finished work is kept"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), "out of memory"),
        (RuntimeError("can't start new thread"), "out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "data loading process ended"),
    ],
)
def test_errors_of_the_operating_system_are_explained(error: Exception, words: str) -> None:
    told = as_swamp_error(error)
    assert told is not None
    assert words in str(told)
    assert told.exit_code == 2


@pytest.mark.parametrize(
    ("error", "first", "final", "whole"),
    [
        (ValueError("\n one \n\ttwo\n"), "one", "two", "ValueError: one"),
        (NotImplementedError(), "NotImplementedError", "NotImplementedError", "NotImplementedError"),
    ],
)
def test_an_error_is_told_in_one_line_also_without_a_message(
    error: Exception, first: str, final: str, whole: str
) -> None:
    assert (first_line(error), final_line(error), type_and_message(error)) == (first, final, whole)


@pytest.mark.parametrize("error", [ValueError("memory"), RuntimeError("size mismatch"), FileNotFoundError(2, "gone")])
def test_a_fault_of_the_program_is_not_put_on_the_machine(error: Exception) -> None:
    assert as_swamp_error(error) is None


def test_a_panic_of_the_library_for_want_of_memory_is_a_memory_error(tmp_path, monkeypatch):
    class PanicException(BaseException):
        """As pyo3 has it."""

    def panic(*_, **__):
        raise PanicException("PyObject pointer is null")

    monkeypatch.setattr("safetensors.torch.save", panic)
    with pytest.raises(MemoryError, match="for a file of tensors: PyObject pointer is null"):
        save_tensors(tmp_path / "file", {"a": torch.zeros(3)})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", ['["\\ud800"]', b'{"\\uDBFF": 1}', '["\ud800"]'])
def test_half_a_character_is_no_json(text):
    with pytest.raises(ValueError, match="half of a character"):
        parse_json(text)
    assert parse_json(b'["\\ud83d\\ude00 \\\\ud"]') == ["\N{GRINNING FACE} \\ud"]


def test_what_has_no_end_or_is_nested_too_deep_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="longer than 256 MiB"):
        read_text(Path("/dev/zero"))
    for text in ("[" * 200_000, b'{"a":' * 200_000):
        with pytest.raises(ValueError, match="nested too deep"):
            parse_json(text)
    (tmp_path / "file").write_text("é")
    assert read_text(tmp_path / "file") == "é"
    (tmp_path / "file").write_text("é", encoding="utf-8-sig")  # as some editors save it
    assert read_text(tmp_path / "file") == "é"
