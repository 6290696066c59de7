"""Memory over a run of 10,000 cycles: it may grow by the lines of its own record, and by nothing else."""

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
from swamp.cli.progress import Quiet
from swamp.runs import RunConfig, start

MOST = 24_000
"""Bytes a cycle: its record as Python keeps it, in the summary and in metrics.jsonl. Its weights alone have 19,000,
with mask and copies they would be some 40,000 more."""


def leaks(campaign: Campaign) -> None:
    """`cases` are cycles."""
    watch = Watch(campaign)
    start(toy(campaign.cases), campaign.folder / "run", watch, Event())
    written = sum(file.stat().st_size for file in (campaign.folder / "run").rglob("*") if file.is_file())
    campaign.count("cycles", len(watch.memory))
    slope = bytes_a_cycle(watch.memory)
    campaign.count("bytes of memory a cycle in the second half", round(slope))
    campaign.count("MB resident at the most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    campaign.count("MB on disk", written // 1_000_000)
    campaign.expect(slope < MOST, f"memory grows by {slope:,.0f} bytes a cycle, {MOST:,} is the most")


def toy(cycles: int) -> RunConfig:
    """One particle, one epoch of two steps, so many cycles."""
    config = tiny(model="mlp-64", keep_checkpoints="means", trajectory_every=0)
    densities = tuple(float(density) for density in np.linspace(1.0, 0.5, cycles))
    plan = replace(config.plan, method="imp", particles=(1,), densities=densities, ticket_epochs=0)
    training = replace(config.training, epochs=1, swa_fraction=0.0)
    return replace(config, plan=plan, training=training, data=replace(config.data, examples=160))


class Watch(Quiet):
    """Notes how much memory is taken at the end of each cycle."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.memory: list[int] = []

    def finished(self, cycle: Cycle) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.campaign.progress(len(self.memory))


def bytes_a_cycle(memory: list[int]) -> float:
    """Slope of the second half: what a process takes once it has taken by then."""
    half = memory[len(memory) // 2 :]
    return float(np.polyfit(np.arange(len(half)), half, 1)[0])


if __name__ == "__main__":
    main(leaks, cases=10_000)
