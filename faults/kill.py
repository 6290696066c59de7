"""kill -9 at random moments, then resume: the result equals that of an undisturbed run.

Ranks and workers are forks of this process, and in a few cases are started by torchrun and `swamp study`.
"""

import os
import random
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from audit import redone
from campaign import Campaign, main
from child import Child, traceback_in
from modes import MODES, Analyze, Mode, finish, log, undisturbed, warm

SHARES = ("sequential", "threads", "analyze", "ranks", "study", "vmapped", "ensemble", "auto", "late") * 6 + (
    "compiled",
    "alone",
    "torchrun",
    "swamp study",
)
"""Modes that cases take in turn; slow modes appear less often."""


def kills(campaign: Campaign, modes: Sequence[str] = SHARES) -> None:
    warm()
    for name in dict.fromkeys(modes):
        mode = MODES[name]
        reference, seconds = undisturbed(mode, campaign.folder)
        share = sum(modes[case % len(modes)] == name for case in range(campaign.cases))
        draw, number = random.Random(f"{campaign.seed} {name}"), 0
        while share:
            run, number = campaign.folder / f"{name}-{number}", number + 1
            share -= one_run(campaign, mode, run, reference, seconds, min(share, draw.randint(1, 4)), draw)
            campaign.count("runs")


def one_run(
    campaign: Campaign, mode: Mode, run: Path, reference: Path, seconds: float, times: int, draw: random.Random
) -> int:
    """Kill a run `times` times, then let it finish; returns the number of kills that came before the end."""
    killed = 0
    mode.prepared(run, reference)
    # A resumed run is shorter each time, and may end before it is killed.
    for _ in range(3 * times):
        children = mode.go(run)
        if mode.slow:
            while not any(run.rglob("config.json")) and all(child.code() is None for child in children):
                time.sleep(0.01)
        time.sleep(draw.uniform(0, 2.0 if mode.slow else seconds))
        if any(child.code() is not None for child in children):
            _ended(campaign, run, children)
            if mode.finished(run):
                break
            continue
        _kill(children, draw)
        _where(campaign, mode, run)
        _ended(campaign, run, children)
        killed += 1
        campaign.count(f"killed {mode.name}")
        campaign.progress(sum(number for name, number in campaign.counts.items() if name.startswith("killed ")))
        if killed == times:
            break
    codes = finish(mode, run)
    campaign.expect(not any(codes), f"{run.name} did not end: {codes} {log(run).read_text()[-500:]}")
    campaign.expect(not (wrong := mode.different(reference, run)), f"{run.name} differs: {wrong}")
    found = redone(run.with_suffix(".audit"))
    campaign.count("finished particles redone", found.particles)
    campaign.count("steps redone", found.steps)
    campaign.expect(not found.particles, f"{run.name} repeated finished work: {found}")
    return killed


def _kill(children: list[Child], draw: random.Random) -> None:
    """Kill one of the processes, or all of them."""
    family = [pid for child in children for pid in (child.pid, *_descendants(child.pid))]
    chosen = family if draw.random() < 0.3 else [draw.choice(family)]
    for pid in chosen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # The other processes detect this and end, or are ended as by torchrun.
    for child in children:
        child.wait(20)


def _descendants(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    found = [int(word) for word in text.split()]
    return found + [further for one in found for further in _descendants(one)]


def _where(campaign: Campaign, mode: Mode, run: Path) -> None:
    """Count the state of the run when it was killed."""
    halves = [path for path in run.rglob(".*") if re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name)]
    begun = isinstance(mode, Analyze) or any(run.rglob("unfinished-*")) or any(run.rglob("cycle-*"))
    campaign.count("while writing" if halves else "while working" if begun else "while starting")


def _ended(campaign: Campaign, run: Path, children: list[Child]) -> None:
    for child in children:
        child.wait()
    campaign.expect(not (told := traceback_in(log(run))), f"{run.name} ended with a traceback: {told}")


if __name__ == "__main__":
    main(kills, cases=200)
