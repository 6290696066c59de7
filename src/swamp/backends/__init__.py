"""How N models are trained at once."""

from collections.abc import Callable

from swamp.backends.autotune import CANDIDATES, Autotune, Choice
from swamp.backends.base import Backend, ForwardingProgress, Progress
from swamp.backends.beat import Member
from swamp.backends.custom import CustomTrainer, TrainJob
from swamp.backends.data_parallel import can_shard
from swamp.backends.particle import Particle, mean_of, require_unbroken
from swamp.backends.ranks import Ranks
from swamp.backends.sequential import Sequential, rewind
from swamp.backends.serving import serve
from swamp.backends.threads import Threads, cores
from swamp.backends.ticket import Ticket
from swamp.backends.vmapped import MultiStream, Vmapped
from swamp.backends.world import JobEnded, World, rank, ranks
from swamp.errors import unknown

BACKENDS: dict[str, Callable[..., Backend]] = {"auto": Autotune, **CANDIDATES}
"""Name -> (model, task, optimizer factory or None) -> backend."""


def backend_named(name: str) -> Callable[..., Backend]:
    """Look a backend up by name. Raises SwampError with suggestions."""
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    return BACKENDS[name]


__all__ = [
    "BACKENDS",
    "Autotune",
    "Backend",
    "Choice",
    "CustomTrainer",
    "ForwardingProgress",
    "JobEnded",
    "Member",
    "MultiStream",
    "Particle",
    "Progress",
    "Ranks",
    "Sequential",
    "Threads",
    "Ticket",
    "TrainJob",
    "Vmapped",
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
]
