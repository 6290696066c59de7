"""What every command shares: reading arguments, the two consoles, signals, warnings."""

import json
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any, TypeVar

from rich.console import Console

from swamp.errors import Interrupted

T = TypeVar("T")
Out = Console()
Err = Console(stderr=True)


def parse(kind: type[T], prog: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Read `arguments` as the fields of `kind`; prints help or the mistake and exits where that is what is due."""
    import tyro

    config = (tyro.conf.OmitArgPrefixes,)
    if default is None:
        return tyro.cli(kind, prog=prog, args=list(arguments), config=config)
    return tyro.cli(kind, prog=prog, args=list(arguments), config=config, default=default)


@contextmanager
def signals(stop: Event) -> Generator[list[int]]:
    """The first SIGINT or SIGTERM asks the run to save and stop; a second one ends it at once."""
    received: list[int] = []

    def asked(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stop.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deaf() -> Generator[None]:
    """Around last words: it ends anyway, whatever signal comes meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stoppable(stop: Event) -> Generator[None]:
    """Signals set `stop`, warnings are lines on standard error, and Interrupted gets the exit code of its signal."""
    with signals(stop) as received, warnings_to(Err):
        try:
            yield
        except Interrupted as error:
            error.exit_code = 128 + (received[0] if received else signal.SIGINT)
            raise


@contextmanager
def warnings_to(console: Console) -> Generator[None]:
    """Show every warning as one line on `console`."""

    def show(message: Warning | str, *others: Any, **more: Any) -> None:
        console.print(f"[yellow]warning:[/yellow] {escaped(str(message))}", soft_wrap=True, highlight=False)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def print_json(value: dict[str, Any]) -> None:
    """One JSON object as one line of standard output; numbers that are not finite become null."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        from swamp.runs.directory import finite

        text = json.dumps(finite(value), allow_nan=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def escaped(text: str) -> str:
    """Text with nothing in it that rich takes for markup."""
    return text.replace("[", "\\[")
