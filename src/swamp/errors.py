"""Errors that a user can cause or must act on; the command line prints the message and exits with `exit_code`."""

import difflib
import errno
import importlib
import inspect
import warnings
from collections.abc import Iterable, Sequence
from typing import Any


class SwampError(Exception):
    """Invalid input or state. The message says what was given, what was expected and what to do."""

    exit_code = 2


class MaskError(SwampError):
    """A mask that does not fit a model, or pruned weights that are not zero."""


class CorruptFile(SwampError):  # noqa: N818
    """A file that is missing, truncated, altered or in the wrong place."""


class Diverged(SwampError):  # noqa: N818
    """A loss or weight became NaN or infinite. Finished cycles are kept."""

    exit_code = 3

    def __init__(self, message: str, steps: int = 0) -> None:
        """`steps`: training step at which it was detected."""
        super().__init__(message)
        self.steps = steps


class RunLocked(SwampError):  # noqa: N818
    """A run directory that another process is writing."""


class Interrupted(SwampError):  # noqa: N818
    """Training was asked to stop. Progress so far is saved."""

    exit_code = 130


class ResourceExhausted(SwampError):  # noqa: N818
    """The machine has no memory or disk space left, or denied access. Finished work is kept."""


class RankFailed(SwampError):  # noqa: N818
    """Another process of the job died or stopped responding. Finished work is kept, and the run can be resumed."""

    exit_code = 4


_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
    errno.EMFILE, errno.ENFILE,
}  # fmt: skip
_MEMORY = (
    "allocate memory",
    "out of memory",
    "bad_alloc",
    "start new thread",
    "failed to map segment",
    "temporarily unavailable",
)
_DATA_WORKER = "DataLoader worker"


def as_swamp_error(error: BaseException) -> SwampError | None:
    """Convert an error caused by the machine (disk, memory) to a SwampError; None for any other error."""
    if isinstance(error, SwampError):
        return error
    short = first_line(error)
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f"{error.filename}: " if error.filename else ""
        return ResourceExhausted(
            f"{where}{error.strerror}. Finished work is kept; free disk space or grant write access, then resume."
        )
    if isinstance(error, RuntimeError) and short.startswith(_DATA_WORKER):
        return data_worker_died(short)
    # torch and the dynamic linker report lack of memory as general errors.
    memory = isinstance(error, RuntimeError | OSError | ImportError) and any(part in str(error) for part in _MEMORY)
    if memory or isinstance(error, MemoryError):
        return ResourceExhausted(
            f"out of memory ({short}). Finished work is kept; resume with more memory, smaller batches (batch_size) "
            'or one particle at a time (backend="sequential").'
        )
    return None


def data_worker_died(why: str) -> SwampError:
    """The error for a DataLoader worker process that ended unexpectedly."""
    return ResourceExhausted(
        f"a data loading process ended ({why.removesuffix('.')}), usually for lack of memory. Finished work is kept; "
        "resume with fewer of them (workers=0) or with more memory."
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type if it has no message."""
    return _lines(error)[0]


def final_line(error: BaseException) -> str:
    """The last line of an error's message, where torch names the last weight that does not fit a model."""
    return _lines(error)[-1]


def type_and_message(error: BaseException) -> str:
    """`TypeError: message`, with the first line of the message; `TypeError` if it has no message."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]


def shortened(names: Sequence[str], most: int = 6) -> str:
    """The first `most` names, and the number of those left out."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def warn(message: str) -> None:
    """Issue a UserWarning at the line outside swamp that led to it."""
    frame = inspect.currentframe()
    level = 1
    # torch's decorators, and blocks of `with`, stand between functions of swamp.
    inner = ("swamp", "torch", "contextlib")
    while frame and frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in inner:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def plural(count: int, noun: str) -> str:
    """The number and the noun, which is plural unless the number is 1."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


_FEW = 6
"""Names that are listed even if one of them is suggested."""


def unknown(kind: str, given: str, choices: Iterable[str]) -> SwampError:
    """The error for a name that does not exist; it suggests the most similar names."""
    names = sorted(choices)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hints = [f"Did you mean {' or '.join(near)}?"] if near else []
    if not near or len(names) <= _FEW:
        hints.append(f"Choose one of: {', '.join(names)}.")
    hint = " ".join(hints)
    return SwampError(f"unknown {kind} {given!r}. {hint}")


def need(module: str, install: str) -> Any:
    """Import an optional library. Raises SwampError with the install command if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SwampError(
            f"this needs {module.partition('.')[0]}, which cannot be imported ({error}). "
            f"Install it: pip install '{install}'"
        ) from error
