"""The entry point: finds the command, and turns errors into messages and exit codes."""

import io
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import NoReturn

from rich.table import Table
from rich.text import Text

from swamp.cli import leaving_at_once
from swamp.cli.session import Err, Out, print_labelled, signals_ignored
from swamp.console import labelled
from swamp.errors import SwampError, as_swamp_error, unknown
from swamp.fields import with_option_names

Command = Callable[[Sequence[str]], None]
"""A command, called with the arguments after its name."""

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "prune a network, from a recipe, a task or a configuration"),
    "resume": ("run", "continue a run after any interruption"),
    "transfer": ("transfer_run", "train the weights, the mask or the sparsity of a finished run on another task"),
    "ticket": ("find_ticket", "find the earliest stable ticket: how long to train before pruning begins"),
    "study": ("study", "run a grid of methods, seeds and settings, on one machine or several"),
    "tune": ("tune", "search for the best options of methods: trials at equal cost, on validation data (Optuna)"),
    "compare": ("compare", "compare runs: table, differences, plot"),
    "analyze": ("analyze", "analyze a run: barriers, curvature, hull, landscape, masks"),
    "masks": ("cross", "compare the masks of several runs"),
    "noise": ("noise", "train particles that differ in one source of randomness: which one makes averaging work?"),
    "cross": ("cross", "train the masks of runs by each other's training: is it the mask, or the training?"),
    "report": ("report", "write one HTML page on runs: accuracy, cost, analyses"),
    "watch": ("report", "serve the report of runs in progress to this machine"),
    "figure": ("report", "draw one figure of the report for a paper"),
    "export": ("export", "write the sparse network of a run as one small file, as ONNX, or as another format"),
    "share": ("share", "write the sparse model of a run to a folder for the Hugging Face Hub, and upload it"),
    "benchmark": ("export", "measure an exported file here: size, speed beside dense runtimes, accuracy"),
    "list": ("listing", "list recipes, tasks, models, methods and other choices"),
    "completion": ("completion", "print a script that completes commands and options in bash, zsh or fish"),
}
"""Command -> module of swamp.cli with the function COMMAND_command and the dataclass CommandArgs; and a summary.

A module is imported when its command is given, as most modules import torch, which takes seconds.
"""

_QUICK = ("list", "completion")
"""Commands that import no torch."""

_LONGEST = 4096
"""Characters of one argument: what Linux takes as a path."""


@contextmanager
def exit_codes() -> Generator[None]:
    """Turn errors inside the block into a message and an exit code; see `swamp.cli.main` for the codes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name may not be valid text; printing it must not end a run.
            stream.reconfigure(errors="backslashreplace")
    try:
        printing = _only_rank_0_prints()
    except SwampError as error:
        _end(error)
    with printing:
        try:
            try:
                yield
            except SwampError as error:
                _end(error)
            except BrokenPipeError:
                # The reader of the output, e.g. head, has closed the pipe; this is no error.
                sys.stderr.close()
                sys.exit(0)
            except Exception as error:
                if (told := as_swamp_error(error) or _unusable(error)) is None:
                    raise
                _end(told)
        except KeyboardInterrupt:
            # Outermost, as a second Ctrl-C may arrive while the first one is handled.
            _say("stopped at once. Saved work is kept: continue with swamp resume RUN.")
            sys.exit(130)


def command_of(arguments: Sequence[str]) -> tuple[Command, Sequence[str]]:
    """The function of the command that the arguments name, and its arguments. Raises SwampError for an unknown name."""
    if not arguments or arguments[0] in ("-h", "--help", "--help-all"):
        return _overview, arguments
    if arguments[0] in ("--version", "version"):
        return _version, arguments[1:]
    if arguments[0] == "help":
        return command_of([*arguments[1:2], "--help"])
    _refuse_long(arguments)
    if arguments[0] not in COMMANDS:
        raise unknown("command", arguments[0], COMMANDS)
    return _command(arguments[0]), arguments[1:]


def _command(name: str) -> Command:
    with leaving_at_once(), nullcontext() if name in _QUICK else _importing():
        return getattr(import_module(f"swamp.cli.{COMMANDS[name][0]}"), f"{name}_command")


@contextmanager
def _importing() -> Generator[None]:
    """Show on a terminal that torch is imported, which takes seconds."""
    stream = sys.stderr
    # A dumb terminal, such as a notebook's, does not erase lines.
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    # No live display: it hides the cursor, and Ctrl-C ends the process here.
    stream.write("importing torch ...")
    stream.flush()
    try:
        yield
    finally:
        stream.write("\r\x1b[2K")
        stream.flush()


def _only_rank_0_prints() -> AbstractContextManager[None]:
    """Under torchrun, rank 0 prints for all ranks."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return nullcontext()
    from swamp.backends.rank_variables import rank
    from swamp.runs.ranks import only_rank_0_prints

    return only_rank_0_prints(rank())


def _refuse_long(given: Sequence[str]) -> None:
    """Raise SwampError for an argument longer than any path: messages that repeat it would be as long."""
    for number, argument in enumerate(given, 1):
        if len(argument) > _LONGEST:
            raise SwampError(
                f"argument {number} ({argument[:40]}...) has {len(argument):,} characters; the limit is {_LONGEST:,}."
                " Separate several values of an option by spaces."
            )


def _unusable(error: Exception) -> SwampError | None:
    """The error for a path that cannot be used: a name too long, a folder without permission."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    name = str(error.filename)
    given = name if len(name) < 200 else f"{name[:80]} ... ({len(name)} characters)"
    return SwampError(f"cannot use {given}: {error.strerror}. Give another path.")


def _end(error: SwampError) -> NoReturn:
    _say(with_option_names(str(error)))
    sys.exit(error.exit_code)


def _say(last: str) -> None:
    with signals_ignored():
        print_labelled(Err, "swamp:", "bold red", last)


def _overview(arguments: Sequence[str]) -> None:
    Out.print(
        labelled("swamp:", "bold", "prune neural networks with Sparse Weight Averaging with Multiple Particles\n")
    )
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, (_, what) in COMMANDS.items():
        table.add_row(Text.assemble("  swamp ", (name, "bold")), what)
    Out.print(table)
    Out.print("\nStart with swamp run; COMMAND --help describes a command.")
    sys.exit(0 if arguments else 2)


def _version(arguments: Sequence[str]) -> None:
    from swamp import __version__

    print(__version__)
