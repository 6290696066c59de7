"""The kernels, built by the system's compiler for this very machine, once."""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from swamp.errors import SwampError
from swamp.files import write_atomic

SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", "-lm")
_FALLBACKS = (("-fopenmp",), ())
"""Without OpenMP (Apple's compiler has none) the kernels use one thread."""


class NoCompiler(SwampError):  # noqa: N818
    """There is no C compiler, or it cannot build the kernels."""


@cache
def kernels() -> Any:
    """The compiled kernels as a ctypes library, from the cache where they were built for this machine before.

    The compiler is $CC, cc, gcc or clang; the cache is $SWAMP_CACHE/kernels or ~/.cache/swamp/kernels. A file is named
    after the digest of source, compiler, flags and processor, so that another machine that shares the cache builds its
    own, and after that of its content: a damaged one is built again. A folder or file that anybody but this user and
    root can write to is passed over, since what lies in it would run here.
    Raises NoCompiler.
    """
    compiler = _compiler()
    for openmp in _FALLBACKS:
        try:
            return _loaded(_built(compiler, (*_FLAGS, *openmp)))
        except NoCompiler as error:
            if openmp == _FALLBACKS[-1]:
                raise error
    raise AssertionError


def _compiler() -> str:
    given = os.environ.get("CC", "")
    found = next((path for name in (given, "cc", "gcc", "clang") if name and (path := shutil.which(name))), None)
    if found is None or given == "none":
        raise NoCompiler(
            "there is no C compiler (cc, gcc, clang or $CC); on Debian: apt install gcc. Without one sparse layers run "
            "as torch's CSR products, where these are faster than dense ones."
        )
    return found


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    source = SOURCE.read_bytes()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    key = _digest(b"\0".join([source, version, " ".join(flags).encode(), _processor()]))
    for folder in filter(_made_private, _folders()):
        for path in folder.glob(f"{key}-*.so"):
            if not _private(path):
                continue
            if path.stem.endswith(_digest(path.read_bytes())):
                return path
            path.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "kernels.so"
            done = subprocess.run(
                [compiler, str(SOURCE), "-o", str(out), *flags], capture_output=True, text=True, check=False
            )
            if done.returncode or not out.exists():
                raise NoCompiler(f"{compiler} could not build the kernels: {done.stderr.strip()[:500]}")
            path = folder / f"{key}-{_digest(out.read_bytes())}.so"
            try:
                write_atomic(path, out.read_bytes())
                return path
            except SwampError:
                continue
    raise NoCompiler(
        f"no folder of {' and '.join(map(str, _folders()))} can be written by you and by nobody else, as the compiled "
        "kernels need; set SWAMP_CACHE to one that can."
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _folders() -> list[Path]:
    chosen = os.environ.get("SWAMP_CACHE", "")
    usual = Path(os.environ.get("XDG_CACHE_HOME", "") or "~/.cache") / "swamp"
    # In /tmp anybody may have made it first: see `_private`.
    own = Path(tempfile.gettempdir()) / f"swamp-{os.getuid() if hasattr(os, 'getuid') else 0}"
    return [folder.expanduser() / "kernels" for folder in (Path(chosen) if chosen else usual, own)]


def _made_private(folder: Path) -> bool:
    """Whether the folder is there, made now if need be, and nobody else can put anything in its place."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        folder = folder.resolve()
        return _private(folder) and all(_private(above, sticky=True) for above in folder.parents)
    except OSError:
        return False


def _private(path: Path, *, sticky: bool = False) -> bool:
    """Whether only this user and root can write there; sticky: or others too, but only what is theirs, as in /tmp."""
    if not hasattr(os, "getuid"):
        return True  # where there are no such rights, caches lie in the user's own profile
    found = path.stat()
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return found.st_uid in (0, os.getuid()) and (not writable or (sticky and bool(found.st_mode & stat.S_ISVTX)))


def _processor() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    kept = ("flags", "Features", "model name", "cpu family", "model\t", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(kept))).encode()


def _loaded(path: Path) -> Any:
    try:
        library: Any = ctypes.CDLL(str(path))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise NoCompiler(
            f"the compiled kernels {path} cannot be loaded ({error}); they will be built again."
        ) from error
    library.swamp_lanes.restype = library.swamp_fields.restype = ctypes.c_int64
    address, number = ctypes.c_void_p, ctypes.c_int64
    library.swamp_run.argtypes = [address, number, address, number, address, number, number, number, address]
    library.swamp_run.restype = None
    return library
