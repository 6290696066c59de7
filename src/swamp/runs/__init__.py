"""Runs on disk: configuration, checkpoints, resume, and studies of many runs."""

from swamp.runs.checkpoints import RunStore
from swamp.runs.config import RunConfig, differences, flattened
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import executing, prepare, resume, start
from swamp.runs.ranks import only_rank_0_prints
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
from swamp.runs.run_progress import Reporter
from swamp.runs.study import BESIDE_RUNS, CompareOptions, Study
from swamp.runs.study_queue import RunState, StudyDirectory, is_study, work
from swamp.runs.trajectory import read_trajectory

__all__ = [
    "BESIDE_RUNS",
    "CompareOptions",
    "Reporter",
    "RunConfig",
    "RunDirectory",
    "RunState",
    "RunStore",
    "Study",
    "StudyDirectory",
    "differences",
    "executing",
    "flattened",
    "is_study",
    "only_rank_0_prints",
    "open_run",
    "prepare",
    "read_cycle",
    "read_mask",
    "read_particle",
    "read_record",
    "read_sessions",
    "read_ticket",
    "read_trajectory",
    "read_weights",
    "resume",
    "start",
    "work",
]
