"""The command line: swamp run | resume | study | compare | analyze | report | watch | figure | list."""

import os
import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: see swamp.cli.entry."""
    with _leaving_at_once():
        # Here, as it takes seconds: who changes their mind meanwhile is not shown the inside of an import.
        from swamp.cli import entry
    entry.main(arguments)


@contextmanager
def _leaving_at_once() -> Generator[None]:
    """Ctrl-C inside the block ends the process: libraries that are half imported turn exceptions into others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        os.write(2, b"swamp: stopped before anything began.\n")
        os._exit(130)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
