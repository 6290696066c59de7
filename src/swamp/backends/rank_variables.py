"""What torchrun tells each process of its job in environment variables; one process without torchrun."""

import os

from swamp.errors import SwampError


def world_size() -> int:
    """Number of processes of this job: 1 without torchrun."""
    return _number("WORLD_SIZE", 1, least=1)


def rank() -> int:
    """Rank of this process: rank 0 runs the cycle loop, prints and writes."""
    return _number("RANK", 0) if world_size() > 1 else 0


def local_size() -> int:
    """Number of processes of this job on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1, least=1)


def local_rank() -> int:
    """Rank of this process among those on this machine."""
    return _number("LOCAL_RANK", 0)


def restarts() -> int:
    """How often torchrun has started this job again after a failure."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def _number(name: str, default: int, least: int = 0) -> int:
    given = os.environ.get(name, str(default))
    if not given.isdecimal() or int(given) < least:
        raise SwampError(
            f"the environment variable {name} is {given!r}, expected a whole number of at least {least}. torchrun sets "
            "it; unset it for one process."
        )
    return int(given)
