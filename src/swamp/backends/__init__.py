"""Backends: how the particles of a cycle are trained, one after another or at once."""

from collections.abc import Callable
from functools import partial

from swamp.backends.autotune import CANDIDATES, CHOSEN, Autotune, Choice
from swamp.backends.base import Backend, Progress, TrainRequest
from swamp.backends.custom import CustomTrainer, TrainJob
from swamp.backends.particle import Particle
from swamp.backends.sequential import Sequential
from swamp.backends.threads import Threads
from swamp.backends.ticket import Ticket
from swamp.backends.vmapped import Vmapped
from swamp.errors import unknown

BACKENDS: dict[str, Callable[..., Backend]] = {"auto": Autotune, **CANDIDATES}
"""Name -> (model, task, optimizer factory or None) -> backend."""


def backend_named(name: str) -> Callable[..., Backend]:
    """Look a backend up by name; auto:NAME is auto with an earlier choice. Raises SwampError with suggestions."""
    if name.startswith(CHOSEN):
        return partial(Autotune, choice=Choice.named(name))
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    return BACKENDS[name]


__all__ = [
    "Autotune",
    "Backend",
    "CustomTrainer",
    "Particle",
    "Progress",
    "Sequential",
    "Threads",
    "Ticket",
    "TrainJob",
    "TrainRequest",
    "Vmapped",
]
