"""A run on disk: configuration, checkpoints, resume, record."""

from swamp.runs.config import RunConfig, differences, flattened
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import executing, prepare, resume, start
from swamp.runs.path import read_path
from swamp.runs.progress import Reporter
from swamp.runs.read import (
    open_run,
    read_cycle,
    read_mask,
    read_particle,
    read_record,
    read_sessions,
    read_ticket,
    read_weights,
)
from swamp.runs.store import RunStore
from swamp.runs.study import BESIDE_RUNS, Study, View
from swamp.runs.study_directory import RunState, StudyDirectory, is_study
from swamp.runs.study_worker import work
from swamp.runs.together import one_voice

__all__ = [
    "BESIDE_RUNS",
    "Reporter",
    "RunConfig",
    "RunDirectory",
    "RunState",
    "RunStore",
    "Study",
    "StudyDirectory",
    "View",
    "differences",
    "executing",
    "flattened",
    "is_study",
    "one_voice",
    "open_run",
    "prepare",
    "read_cycle",
    "read_mask",
    "read_particle",
    "read_path",
    "read_record",
    "read_sessions",
    "read_ticket",
    "read_weights",
    "resume",
    "start",
    "work",
]
