"""Runs on disk: configuration, checkpoints, resume, and studies of many runs."""

from swamp.runs.read import (
    open_run,
    read_cycle,
    read_mask,
    read_particle,
    read_record,
    read_ticket,
)

__all__ = [
    "open_run",
    "read_cycle",
    "read_mask",
    "read_particle",
    "read_record",
    "read_ticket",
]
