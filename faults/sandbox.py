"""A sandbox for one command or call, and the verdict: it ran, it was refused with a clear message, or it is a fault."""

import contextlib
import ctypes
import io
import os
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch._dynamo

from swamp import cli
from swamp.errors import SwampError

GIB = 2**30
SECONDS = 20
"""Limit of processor time; a case that takes longer hangs. Waiting counts a thirtieth, as machines are busy."""
_HARMLESS = ("/dev/", "/proc/")


@dataclass(frozen=True)
class Verdict:
    """Outcome of one case."""

    outcome: str
    """ran, refused, or fault."""
    message: str = ""
    """The message to the user; for a fault, its description."""


@dataclass
class Sandbox:
    """A folder with `case`, which is emptied before each case, a home folder, and `zoo`, files that paths can name."""

    root: Path
    outside: list[str] = field(default_factory=list[str])
    """Paths outside `root` that were opened for writing, created, renamed or deleted."""
    watching: bool = False
    patience: int = 2
    """Seconds of processor time after which a command gets SIGINT, as by Ctrl-C."""

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        for name in ("case", "zoo", "home", "tmp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        sys.addaudithook(self._audit)

    @property
    def zoo(self) -> Path:
        """Folder of the files that paths of cases can name."""
        return self.root / "zoo"

    @property
    def case(self) -> Path:
        """Working folder of a case."""
        return self.root / "case"

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching or event not in _WRITES:
            return
        for path in _WRITES[event](arguments):
            if isinstance(path, int):
                continue  # was checked when it was opened
            full = os.path.realpath(os.fsdecode(path))
            if not full.startswith((f"{self.root}/", *_HARMLESS)):
                self.outside.append(f"{event} {full}")

    @contextlib.contextmanager
    def entered(self, seconds: int = SECONDS) -> Generator[None]:
        """Inside the block: an empty folder, a separate home, no network, and no root privileges."""
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()
        before = Path.cwd(), dict(os.environ)
        inside = {"HOME": "home", "TMPDIR": "tmp", "TORCHINDUCTOR_CACHE_DIR": "tmp", "MPLCONFIGDIR": "home"}
        os.environ.update({name: str(self.root / place) for name, place in inside.items()}, COLUMNS="200")
        tempfile.tempdir = None  # tempfile reads the environment only once
        os.chdir(self.case)
        self.outside.clear()
        try:
            # Compiling takes half a minute per run, and is not tested here.
            uncompiled = torch._dynamo.config.patch(disable=True)
            with without_rights(), _offline(), _alarm(self.patience, seconds), uncompiled:
                self.watching = True
                yield
        finally:
            self.watching = False
            os.chdir(before[0])
            os.environ.clear()
            os.environ.update(before[1])
            tempfile.tempdir = None

    def command(self, *words: str, stdin: str = "") -> Verdict:
        """Try a command line."""
        out, err = _stream("strict"), _stream("backslashreplace")
        code: Any = 0
        trouble = ""
        with self.entered(), _streams(out, err, stdin):
            try:
                cli.main(list(words))
            except SystemExit as stop:
                code = stop.code or 0
            except TooLong:
                trouble = f"{traceback.format_exc()}\ntook more than {SECONDS} s"
            except BaseException:
                trouble = traceback.format_exc()
        told = _text(err)
        return self._judged(code, told, _text(out), trouble)

    def call(self, work: Callable[[], object]) -> Verdict:
        """Try a function, which must refuse with a SwampError."""
        with self.entered():
            try:
                work()
            except SwampError as error:
                verdict = Verdict("refused", str(error))
            except TooLong:
                return Verdict("fault", f"{traceback.format_exc()}\ntook more than {SECONDS} s")
            except Exception:
                return Verdict("fault", traceback.format_exc())
            else:
                verdict = Verdict("ran")
        if verdict.outcome == "refused" and (wrong := unclear(verdict.message)):
            return Verdict("fault", f"{wrong}: {verdict.message!r}")
        return self._contained(verdict)

    def _judged(self, code: Any, told: str, said: str, trouble: str) -> Verdict:
        if trouble:
            return Verdict("fault", trouble)
        if code in (0, 3, 130):
            return self._contained(Verdict("ran", told))
        if code != 2:
            return Verdict("fault", f"exit code {code}: {told[-2000:]}")
        # tyro prints its own messages inside a frame.
        given = told if told.strip() else said
        if wrong := unclear(given):
            return Verdict("fault", f"{wrong}: {given[-2000:]!r}")
        return self._contained(Verdict("refused", given))

    def _contained(self, verdict: Verdict) -> Verdict:
        if self.outside:
            return Verdict("fault", f"wrote outside its directory: {self.outside[:3]}")
        return verdict


def unclear(message: str) -> str:
    """The problem of a message to the user; empty if there is none."""
    framed = "╭" in message
    bare = re.sub(r"[│╭╮╰╯─]", "", message).strip()
    if len(bare) < 20:
        return "is too short"
    if "Traceback" in bare or 'File "' in bare:
        return "shows a traceback"
    if not framed and "\n\n" in bare:
        return "is more than a paragraph"
    if len(bare) > 12_000:
        return "is too long"
    return ""


class TooLong(BaseException):
    """The case did not end. Not an Exception, so that the tested code does not catch it."""


@contextlib.contextmanager
def _alarm(patience: int, seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        took = max(time.process_time() - used, (time.monotonic() - began) / 30)
        if took > seconds:
            raise TooLong
        signal.alarm(1)
        if took > patience and signal.getsignal(signal.SIGINT) is not signal.default_int_handler and not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    began, used, asked = time.monotonic(), time.process_time(), list[bool]()
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(1)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Refuse connections to other machines, as without a network."""
    real = socket.getaddrinfo

    def refused(host: Any, *others: Any, **more: Any) -> Any:
        if host in (None, "", "127.0.0.1", "localhost"):
            return real(host, *others, **more)
        raise socket.gaierror(socket.EAI_NONAME, "no network in here")

    socket.getaddrinfo = refused
    try:
        yield
    finally:
        socket.getaddrinfo = real


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Drop root privileges, so that unreadable files are unreadable; on Linux, for this thread only."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    kept = (ctypes.c_uint32 * 6)()
    libc.capget(header, kept)
    none = (ctypes.c_uint32 * 6)(*kept)
    none[0] = none[3] = 0  # effective capabilities; permitted ones stay, to be restored
    libc.capset(header, none)
    try:
        yield
    finally:
        libc.capset(header, kept)


def limit_memory(gib: float = 3.0) -> None:
    """Limit this process to `gib` GiB of address space beyond its present one."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + int(gib * GIB)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    return cast(io.BytesIO, stream.buffer).getvalue().decode(errors="replace") if not stream.closed else ""


@contextlib.contextmanager
def _streams(out: io.TextIOWrapper, err: io.TextIOWrapper, given: str) -> Iterator[None]:
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(given), out, err
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _opened(arguments: tuple[Any, ...]) -> list[Any]:
    path, mode, opened = arguments
    writing = isinstance(opened, int) and opened & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    return [path] if isinstance(path, str | bytes) and (writing or (mode and set(mode) & set("wax+"))) else []


_WRITES: dict[str, Callable[[tuple[Any, ...]], list[Any]]] = {
    "open": _opened,
    "os.mkdir": lambda given: [given[0]],
    "os.rename": lambda given: [given[0], given[1]],
    "os.remove": lambda given: [given[0]],
    "os.rmdir": lambda given: [given[0]],
    "os.symlink": lambda given: [given[1]],
    "os.link": lambda given: [given[1]],
    "os.truncate": lambda given: [given[0]],
    "os.chmod": lambda given: [given[0]],
}
