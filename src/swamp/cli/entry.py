"""The entry point: finds the command, and turns errors into messages and exit codes."""

import io
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from rich.table import Table

from swamp.cli.analyze import analyze_command
from swamp.cli.compare import compare_command
from swamp.cli.compare_masks import masks_command
from swamp.cli.cross import cross_command
from swamp.cli.export import benchmark_command, export_command
from swamp.cli.find_ticket import ticket_command
from swamp.cli.listing import list_command
from swamp.cli.noise import noise_command
from swamp.cli.report import figure_command, report_command, watch_command
from swamp.cli.run import resume_command, run_command
from swamp.cli.session import Err, Out, deaf, escaped
from swamp.cli.study import study_command
from swamp.errors import SwampError, as_swamp_error, unknown
from swamp.runs import one_voice

_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "run": (run_command, "prune a network, from a recipe or a configuration"),
    "resume": (resume_command, "go on with a run after any interruption"),
    "ticket": (ticket_command, "find the earliest stable ticket: how long to train before pruning begins"),
    "study": (study_command, "do many runs: a grid of methods, seeds and settings, on one machine or several"),
    "compare": (compare_command, "put runs beside each other: table, differences, plot"),
    "analyze": (analyze_command, "look into a run: barriers, curvature, hull, landscape, masks"),
    "masks": (masks_command, "say what masks of several runs have in common"),
    "noise": (noise_command, "train particles that differ in one thing at a time: what makes averaging work?"),
    "cross": (cross_command, "train runs' masks by each other's training: is it the mask, or how it was trained?"),
    "report": (report_command, "write one HTML page on runs: what they reached, and why"),
    "watch": (watch_command, "serve that page to this machine while a run goes on"),
    "figure": (figure_command, "draw one of its pictures for a paper"),
    "export": (export_command, "write the sparse network of a run as one small file, or as ONNX and others"),
    "benchmark": (benchmark_command, "measure such a file here: size, speed beside dense runtimes, accuracy"),
    "list": (
        list_command,
        "say what recipes, tasks, models, methods, scores, backends, studies and analyses there are",
    ),
}

_LONGEST = 4096
"""Characters of one argument: what Linux takes as a path."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point.

    Exit codes: 0 done, 1 a fault of swamp, 2 bad input or a machine that refuses (memory, disk), 3 training diverged or
    a run of a study failed, 4 another rank was lost, 130 and 143 stopped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name may be no text at all; that must not end a run in the line that tells of it.
            stream.reconfigure(errors="backslashreplace")
    with one_voice():
        try:
            _main(arguments)
        except KeyboardInterrupt:
            # Here, as a second Ctrl-C may come while the first one is being answered.
            _say("stopped at once. What was saved stays: swamp resume RUN goes on from it.")
            sys.exit(130)


def _main(arguments: Sequence[str] | None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        _overview()
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        from swamp import __version__

        print(__version__)
        return
    try:
        _refuse_endless(given)
        if given[0] not in _COMMANDS:
            raise unknown("command", given[0], _COMMANDS)
        _COMMANDS[given[0]][0](given[1:])
    except SwampError as error:
        _end(error)
    except BrokenPipeError:
        # The reader of our output (head, say) has had enough; nothing is wrong.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if (told := as_swamp_error(error) or _unusable(error)) is None:
            raise
        _end(told)


def _refuse_endless(given: Sequence[str]) -> None:
    """What is longer than any path is no argument of ours; messages that repeat it would be as long."""
    for number, argument in enumerate(given, 1):
        if len(argument) > _LONGEST:
            raise SwampError(
                f"argument {number} ({argument[:40]}...) has {len(argument):,} characters; {_LONGEST:,} are the most."
                " Options with many values take them one by one, apart from each other."
            )


def _unusable(error: Exception) -> SwampError | None:
    """What a path leads to is the user's: a name too long, a folder that may not be entered."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    name = str(error.filename)
    given = name if len(name) < 200 else f"{name[:80]} ... ({len(name)} characters)"
    return SwampError(f"cannot use {given}: {error.strerror}. Give another path.")


def _end(error: SwampError) -> NoReturn:
    _say(str(error))
    sys.exit(error.exit_code)


def _say(last: str) -> None:
    with deaf():
        Err.print(f"[bold red]swamp:[/bold red] {escaped(last)}", soft_wrap=True, highlight=False)


def _overview() -> None:
    Out.print("[bold]swamp[/bold]: prune neural networks with Sparse Weight Averaging with Multiple Particles\n")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, (_, what) in _COMMANDS.items():
        table.add_row(f"  swamp [bold]{name}[/bold]", what)
    Out.print(table)
    Out.print("\nStart with [bold]swamp run[/bold]; every command explains itself with --help.")
