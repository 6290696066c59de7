"""Memory of a run of 10,000 cycles: it may grow only by the lines of its records."""

import os
import resource
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np

import child  # noqa: F401 - one thread, before torch begins
from campaign import Campaign, main
from modes import tiny
from swamp.algorithms import Cycle
from swamp.runs.config import RunConfig
from swamp.runs.execute import start
from swamp.runs.run_progress import Reporter

MOST = 24_000
"""Largest allowed growth in bytes per cycle: the record as Python objects, for the summary and metrics.jsonl. Weights
have 19,000 bytes; with mask and copies they would add about 40,000."""


def leaks(campaign: Campaign) -> None:
    """Run the campaign; `cases` is the number of cycles."""
    watch = Watch(campaign)
    start(toy(campaign.cases), campaign.folder / "run", watch, Event())
    written = sum(file.stat().st_size for file in (campaign.folder / "run").rglob("*") if file.is_file())
    campaign.count("cycles", len(watch.memory))
    slope = bytes_a_cycle(watch.memory)
    campaign.count("bytes of memory per cycle in the second half", round(slope))
    campaign.count("MB resident at the most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    campaign.count("MB on disk", written // 1_000_000)
    campaign.expect(slope < MOST, f"memory grows by {slope:,.0f} bytes per cycle, at most {MOST:,} are allowed")


def toy(cycles: int) -> RunConfig:
    """A run with one particle and one epoch of two steps per cycle."""
    config = tiny(model="mlp-64", keep_checkpoints="means", trajectory_every=0)
    densities = tuple(float(density) for density in np.linspace(1.0, 0.5, cycles))
    plan = replace(config.plan, method="imp", particles=(1,), densities=densities, ticket_epochs=0)
    training = replace(config.training, epochs=1, swa_fraction=0.0)
    return replace(config, plan=plan, training=training, data=replace(config.data, examples=160))


class Watch(Reporter):
    """Records the memory in use at the end of each cycle."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.memory: list[int] = []

    def finished(self, cycle: Cycle) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.campaign.progress(len(self.memory))


def bytes_a_cycle(memory: list[int]) -> float:
    """Growth in the second half, as one-time allocations happen in the first."""
    half = memory[len(memory) // 2 :]
    return float(np.polyfit(np.arange(len(half)), half, 1)[0])


if __name__ == "__main__":
    main(leaks, cases=10_000)
