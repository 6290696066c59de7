"""Every error a user can cause or must act on; the command line prints the message alone and exits with `exit_code`."""

import difflib
import errno
from collections.abc import Iterable, Sequence


class SwampError(Exception):
    """Bad input or bad state. The message says what was given, what was expected and what to do."""

    exit_code = 2


class MaskError(SwampError):
    """A mask that does not fit a model, or weights that are not zero where the mask says so."""


class Damaged(SwampError):  # noqa: N818
    """A file that is missing, cut short or altered, or lies where it does not belong."""


class Diverged(SwampError):  # noqa: N818
    """A loss or weight became NaN or infinite. The cycle before it is kept as it was."""

    exit_code = 3

    def __init__(self, message: str, steps: int = 0) -> None:
        """`steps` is the step of its training at which it was seen."""
        super().__init__(message)
        self.steps = steps


class Busy(SwampError):  # noqa: N818
    """A run that another process is writing."""


class Interrupted(SwampError):  # noqa: N818
    """Training was asked to stop; what was done so far is saved."""

    exit_code = 130


class Refused(SwampError):  # noqa: N818
    """The machine had no memory or no disk left, or did not allow something. What was finished is kept."""


class Lost(SwampError):  # noqa: N818
    """Another process of the job died or fell silent. What was finished is kept, and the run can go on."""

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
_READER = "DataLoader worker"


def refused(error: BaseException) -> SwampError | None:
    """What to tell the user of `error` where the machine is its cause; None for every other one."""
    if isinstance(error, SwampError):
        return error
    words = str(error).strip() or type(error).__name__
    short = words.splitlines()[0]
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f"{error.filename}: " if error.filename else ""
        return Refused(
            f"{where}{error.strerror}. What was finished is kept; make room or give the right to write, then go on."
        )
    if isinstance(error, RuntimeError) and short.startswith(_READER):
        return reader_lost(short)
    # torch and the loader of libraries have no type of their own for it.
    memory = isinstance(error, RuntimeError | OSError | ImportError) and any(part in words for part in _MEMORY)
    if memory or isinstance(error, MemoryError):
        return Refused(
            f"this process has no memory left ({short}). What was finished is kept; go on with more of it, smaller "
            "batches (--batch-size) or one particle at a time (--backend sequential)."
        )
    return None


def reader_lost(why: str) -> SwampError:
    """The error for a process of a DataLoader that is gone."""
    return Refused(
        f"a process that reads the data has ended ({why.removesuffix('.')}), most often for want of memory. What was "
        "finished is kept; go on with fewer of them (--workers), or with more memory."
    )


def shortened(names: Sequence[str], most: int = 6) -> str:
    """The first names of a list that may be long, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def unknown(kind: str, given: str, choices: Iterable[str]) -> SwampError:
    """The error for a name that does not exist, with the nearest names that do."""
    names = sorted(choices)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There is: {', '.join(names)}."
    return SwampError(f"unknown {kind} {given!r}. {hint}")
