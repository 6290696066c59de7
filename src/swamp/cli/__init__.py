"""The command line. Each command has a module, which is imported when the command is given."""

import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name (default: those of the process).

    Exit codes: 0 done, 1 a fault of swamp, 2 invalid input or too little memory or disk space, 3 training diverged or
    a run of a study failed, 4 another rank failed, 130 and 143 stopped by a signal.
    """
    with leaving_at_once():
        # Imported here: Ctrl-C during the import prints one line, not a traceback.
        from swamp.cli.entry import command_of, exit_codes
    with exit_codes():
        command, rest = command_of(sys.argv[1:] if arguments is None else arguments)
        command(rest)


@contextmanager
def leaving_at_once() -> Generator[None]:
    """End the process on Ctrl-C inside the block: half-imported libraries could replace the exception."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        os.write(2, b"swamp: stopped before the command started.\n")
        os._exit(130)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
