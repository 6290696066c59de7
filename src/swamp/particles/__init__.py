"""How N models are trained at once."""

from collections.abc import Callable

from swamp.errors import unknown
from swamp.particles.auto import WAYS, Auto, Choice
from swamp.particles.backend import AtOnce, Backend, Group, Progress, Silent, train_groups
from swamp.particles.beat import Member
from swamp.particles.own import Own, Work
from swamp.particles.particle import Particle, mean_of, require_unbroken
from swamp.particles.ranks import Addressed, Ranks
from swamp.particles.sequential import Sequential, rewind
from swamp.particles.serving import serve
from swamp.particles.sharding import can_shard
from swamp.particles.stacked import Forked, Stacked
from swamp.particles.threads import Threads, cores
from swamp.particles.ticket import Ticket
from swamp.particles.world import Over, World, rank, ranks

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
    "Member",
    "Over",
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
