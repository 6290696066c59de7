"""The command line. One module a command, imported when the command is given; `swamp --help` lists them."""

import os
import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["leaving_at_once", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: see swamp.cli.entry."""
    with leaving_at_once():
        # Imported here: Ctrl-C during the import prints one line, not a traceback.
        from swamp.cli import entry
    entry.main(arguments)


@contextmanager
def leaving_at_once() -> Generator[None]:
    """End the process on Ctrl-C inside the block: half-imported libraries would replace the exception by another."""
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
