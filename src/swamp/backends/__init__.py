"""How N models are trained at once."""

from collections.abc import Callable

from swamp.backends.auto import WAYS, Auto, Choice
from swamp.backends.backend import AtOnce, Backend, Group, Progress, Silent, train_groups
from swamp.backends.beat import Member
from swamp.backends.data_parallel import can_shard
from swamp.backends.own import Own, Work
from swamp.backends.particle import Particle, mean_of, require_unbroken
from swamp.backends.ranks import Addressed, Ranks
from swamp.backends.sequential import Sequential, rewind
from swamp.backends.serving import serve
from swamp.backends.stacked import Forked, Stacked
from swamp.backends.threads import Threads, cores
from swamp.backends.ticket import Ticket
from swamp.backends.world import JobEnded, World, rank, ranks
from swamp.errors import unknown

BACKENDS: dict[str, Callable[..., Backend]] = {"auto": Auto, **WAYS}
"""Name -> (model, task, optimizer factory or None) -> backend."""


def backend_named(name: str) -> Callable[..., Backend]:
    """Look a backend up by name. Raises SwampError with suggestions."""
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    return BACKENDS[name]


__all__ = [
    "BACKENDS",
    "Addressed",
    "AtOnce",
    "Auto",
    "Backend",
    "Choice",
    "Forked",
    "Group",
    "JobEnded",
    "Member",
    "Own",
    "Particle",
    "Progress",
    "Ranks",
    "Sequential",
    "Silent",
    "Stacked",
    "Threads",
    "Ticket",
    "Work",
    "World",
    "backend_named",
    "can_shard",
    "cores",
    "mean_of",
    "rank",
    "ranks",
    "require_unbroken",
    "rewind",
    "serve",
    "train_groups",
]
