"""Child processes that run a command of swamp and can be killed: forked, which saves importing torch, or started."""

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch._dynamo

import swamp.cli.entry

ONE_THREAD = {"OMP_NUM_THREADS": "1"}

Fault = Callable[[], None]
"""Called in the child before the command runs, to prepare the fault."""


@dataclass
class Child:
    """One process, and the file with its output."""

    pid: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    status: int | None = None
    closing: list[int] = field(default_factory=list[int])
    """Ends of pipes, kept open as long as the child shall run."""

    def code(self) -> int | None:
        """Exit code, negative signal number if a signal ended it, None while it runs."""
        if self.process is not None:
            return self.process.poll()
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def signal(self, number: int) -> None:
        if self.code() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = 600.0) -> int:
        """Wait for the exit code. The child is killed after `seconds`, and the exit code is then -9."""
        self.wait_at_most(seconds)
        while (code := self.code()) is None:
            os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
        for end in self.closing:
            os.close(end)
        self.closing = []
        return code

    def wait_at_most(self, seconds: float) -> None:
        """Wait until the child has ended, at most `seconds`."""
        until = time.monotonic() + seconds
        while self.code() is None and time.monotonic() < until:
            time.sleep(0.002)

    def told(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def alone() -> Generator[None]:
    """Limit torch to one thread inside the block: a process with more threads cannot be forked safely."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def forked(
    arguments: Sequence[object], log: Path, fault: Fault | None = None, environment: Mapping[str, str] | None = None
) -> Child:
    """Run `swamp ARGUMENTS` in a fork of this process, which must have one thread: see `alone`.

    Returns when the fork is about to run the command: a signal before that would meet this function.
    """
    read, write = os.pipe()
    prepared, prepares = os.pipe()
    pid = os.fork()
    if pid:
        os.close(read)
        os.close(prepares)
        os.read(prepared, 1)
        os.close(prepared)
        return Child(pid, log, closing=[write])
    try:
        os.close(write)
        os.close(prepared)
        os.dup2(read, 0)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        # pytest replaces these streams by its own, which do not write there.
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        # pytest's hook parses source, which fails in CPython 3.11 if it interrupts another parse, such as tyro's.
        sys.unraisablehook = sys.__unraisablehook__
        swamp.cli.entry.Out.file, swamp.cli.entry.Err.file = sys.stdout, sys.stderr
        os.environ.update({**ONE_THREAD, **(environment or {})})
        # Saves seconds in each child; compiled steps are tested in started processes.
        torch._dynamo.config.disable = True
        if fault is not None:
            fault()
        os.close(prepares)
        code = _run([str(argument) for argument in arguments])
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(arguments: list[str]) -> int:
    try:
        swamp.cli.main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def started(command: Sequence[object], log: Path, environment: Mapping[str, str] | None = None) -> Child:
    """Run a command in a new process with its own process group."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},
            start_new_session=True,
        )
    return Child(process.pid, log, process)


def traceback_in(log: Path) -> str:
    """The traceback in a log, if any, except torchrun's own traceback for a rank that died."""
    told = log.read_text(errors="replace") if log.exists() else ""
    _, *found = told.split("Traceback (most recent call last)")
    return "\n".join(one[-3000:] for one in found if re.search(r'File ".*/swamp/', one))
