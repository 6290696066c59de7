"""A run on disk: configuration, checkpoints, resume, record."""

from swamp.runs.config import RunConfig, differences, flattened
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import prepare, resume, start
from swamp.runs.store import Reporter, RunStore
from swamp.runs.together import one_voice

__all__ = [
    "Reporter",
    "RunConfig",
    "RunDirectory",
    "RunStore",
    "differences",
    "flattened",
    "one_voice",
    "prepare",
    "resume",
    "start",
]
