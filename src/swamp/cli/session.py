"""Shared by all commands: parsing of arguments, the two consoles, signals, warnings."""

import json
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any, TypeVar

from rich.console import Console

from swamp.console import labelled, plain_console
from swamp.errors import Interrupted
from swamp.fields import with_option_names

_T = TypeVar("_T")
Out = plain_console()
Err = plain_console(stderr=True)


def parse(
    kind: type[_T],
    prog: str,
    arguments: Sequence[str],
    default: _T | None = None,
    short_help: Mapping[str, Sequence[str]] | None = None,
) -> _T:
    """Read the arguments of a command. Exits after --help or --help-all.

    Args:
        kind: Dataclass; each field, also of a dataclass in it, is an option with the string below it as help.
        prog: The command, for its usage line.
        arguments: Arguments after the command.
        default: Values of the options that are not given; without it, the defaults of `kind`.
        short_help: Heading -> fields that --help shows; without it, --help shows all options, as --help-all does.

    Raises:
        SwampError: An option does not exist, or a value is missing or cannot be one.
    """
    # Only here: both print on the consoles of this module.
    from swamp.cli.check import check_arguments
    from swamp.cli.help import command_options, print_help

    given = kind if default is None else default
    if asked := {"-h", "--help", "--help-all"}.intersection(arguments):
        print_help(prog, given, None if "--help-all" in asked else short_help)
        sys.exit(0)
    options = list(command_options(given))
    arguments = [next((one.name for one in options if one.short == word), word) for word in arguments]
    check_arguments(arguments, prog, options)
    import tyro

    config = (tyro.conf.OmitArgPrefixes,)
    if default is None:
        return tyro.cli(kind, prog=prog, args=arguments, config=config)
    return tyro.cli(kind, prog=prog, args=arguments, config=config, default=default)


@contextmanager
def signals(stop: Event) -> Generator[list[int]]:
    """The first SIGINT or SIGTERM sets `stop`: the run saves and stops. The second raises KeyboardInterrupt."""
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
def signals_ignored() -> Generator[None]:
    """Ignore signals while the last message is printed: the process ends in any case."""
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
def stoppable(stop: Event, bars: Console = Err) -> Generator[None]:
    """A signal sets the event `stop`, warnings go to standard error, and Interrupted carries the signal's exit code.

    bars: the console that draws progress, see `beside`.
    """
    with signals(stop) as received, warnings_to(beside(bars)):
        try:
            yield
        except Interrupted as error:
            error.exit_code = 128 + (received[0] if received else signal.SIGINT)
            raise


def beside(bars: Console) -> Console:
    """Where to print what belongs to standard error while `bars` draws progress, so that no bar is broken by it."""
    return bars if bars.file.isatty() and Err.file.isatty() else Err


@contextmanager
def warnings_to(console: Console) -> Generator[None]:
    """Show every warning as one line on `console`."""

    def show(message: Warning | str, *others: Any, **more: Any) -> None:
        print_labelled(console, "warning:", "yellow", with_option_names(str(message)))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def print_json(value: dict[str, Any]) -> None:
    """One JSON object as one line of standard output; numbers that are not finite become null."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        from swamp.runs.directory import replace_nonfinite

        text = json.dumps(replace_nonfinite(value), allow_nan=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_labelled(console: Console, label: str, style: str, text: str) -> None:
    """Print a coloured label and a text on one line, which may be longer than the terminal is wide."""
    console.print(labelled(label, style, text), soft_wrap=True)
