"""How N models are trained at once."""

from collections.abc import Callable

from swamp.backends.autotune import CANDIDATES, Autotune, Choice
from swamp.backends.base import Backend, ForwardingProgress, Progress
from swamp.backends.coordinator import Coordinator, JobEnded, Member
from swamp.backends.custom import CustomTrainer, TrainJob
from swamp.backends.data_parallel import can_shard
from swamp.backends.distributed import Distributed, FolderProgress, follow
from swamp.backends.particle import Particle, mean_of, require_unbroken
from swamp.backends.rendezvous import close_process_group, rank, restarts, world_size
from swamp.backends.sequential import Sequential, rewind
from swamp.backends.threads import Threads, cores
from swamp.backends.ticket import Ticket
from swamp.backends.vmapped import MultiStream, Vmapped
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
    "Coordinator",
    "CustomTrainer",
    "Distributed",
    "FolderProgress",
    "ForwardingProgress",
    "JobEnded",
    "Member",
    "MultiStream",
    "Particle",
    "Progress",
    "Sequential",
    "Threads",
    "Ticket",
    "TrainJob",
    "Vmapped",
    "backend_named",
    "can_shard",
    "close_process_group",
    "cores",
    "follow",
    "mean_of",
    "rank",
    "require_unbroken",
    "restarts",
    "rewind",
    "world_size",
]
