"""Every error a user can cause or must act on; the command line prints the message alone and exits with `exit_code`."""

import difflib
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


class Lost(SwampError):  # noqa: N818
    """Another process of the job died or fell silent. What was finished is kept, and the run can go on."""

    exit_code = 4


def shortened(names: Sequence[str], most: int = 6) -> str:
    """The first names of a list that may be long, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def unknown(kind: str, given: str, choices: Iterable[str]) -> SwampError:
    """The error for a name that does not exist, with the nearest names that do."""
    names = sorted(choices)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There is: {', '.join(names)}."
    return SwampError(f"unknown {kind} {given!r}. {hint}")
