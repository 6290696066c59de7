"""A disk that refuses the k-th change (full, read-only, failing), or the process dies there; then the disk works."""

import errno
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

from audit import redone
from campaign import Campaign, main
from child import Fault, traceback_in
from modes import MODES, Faults, Mode, Workers, finish, log, undisturbed, warm
from tap import tap

ORDER = ("sequential", "threads", "vmapped", "analyze", "ranks", "study")
FAULTS = {"full": errno.ENOSPC, "full from then on": errno.ENOSPC, "failing": errno.EIO, "read-only": errno.EROFS}
DIES = "dies"


def refusals(campaign: Campaign, modes: Sequence[str] = ORDER) -> None:
    warm()
    known = {name: _known(MODES[name], campaign.folder) for name in modes}
    for case in range(campaign.cases):
        name = modes[case % len(modes)]
        reference, changes = known[name]
        draw = random.Random(f"{campaign.seed} {case}")
        fault = draw.choice([*FAULTS, DIES])
        _one(campaign, MODES[name], reference, campaign.folder / f"{name}-{case}", fault, draw.randrange(changes), draw)
        campaign.progress(case + 1)


def _known(mode: Mode, folder: Path) -> tuple[Path, int]:
    """The undisturbed run, and the number of disk changes of one of its processes."""
    reference, _ = undisturbed(mode, folder)
    run, counted = folder / f"{mode.name}-counted", folder / f"{mode.name}.count"
    mode.prepared(run, reference)

    def count(number: int) -> Fault | None:
        return None if number else lambda: tap(run, lambda *_: _append(counted))

    finish(mode, run, count)
    return reference, counted.stat().st_size


def _append(file: Path) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, b".")
    os.close(handle)


def _one(campaign: Campaign, mode: Mode, reference: Path, run: Path, fault: str, at: int, draw: random.Random) -> None:
    victim = draw.randrange(2)
    met = run.with_suffix(".met")
    mode.prepared(run, reference)
    codes = finish(mode, run, _in_one(run, fault, at, victim if mode.name in ("ranks", "study") else 0, met))
    where = met.read_text().splitlines()[0] if met.exists() else "never"
    what = f"{run.name}: {fault} at change {at} ({where})"
    campaign.count(fault if met.exists() else "came too late")
    campaign.expect(not (told := traceback_in(log(run))), f"{what}: {told}")
    good = (0, 2, 4, 130, 143, *((-signal.SIGKILL,) if fault == DIES else ()))
    campaign.expect(all(code in good for code in codes), f"{what}: exit codes {codes} {log(run).read_text()[-500:]}")
    silent = any(code not in (0, -signal.SIGKILL) for code in codes) and "swamp:" not in log(run).read_text()
    campaign.expect(not silent, f"{what}: no message, exit codes {codes}")
    if isinstance(mode, Workers):
        # A run that met a full disk is recorded as failed, and repeated only with --retry.
        mode.prepared(run, reference)
    codes = finish(mode, run)
    campaign.expect(not any(codes), f"{what}: does not continue: {codes} {log(run).read_text()[-500:]}")
    campaign.expect(not (wrong := mode.different(reference, run)), f"{what}: differs in {wrong}")
    found = redone(run.with_suffix(".audit"))
    campaign.count("finished particles redone", found.particles)
    campaign.count("steps redone", found.steps)
    campaign.expect(not found.particles, f"{what}: repeated finished work: {found}")


def _in_one(run: Path, fault: str, at: int, victim: int, met: Path) -> Faults:
    """Inject the fault into one of the processes."""

    def seen_by(changes: list[int]) -> Fault:
        def seen(operation: str, path: Path, data: bytes) -> None:
            if fault.startswith("full") and operation in ("unlink", "rmdir", "ftruncate"):
                return  # a full disk still allows deletions
            changes[0] += 1
            if changes[0] - 1 < at or (changes[0] - 1 > at and fault != "full from then on"):
                return
            met.write_text(f"{operation} {path.name}\n")
            if fault == DIES:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(FAULTS[fault], os.strerror(FAULTS[fault]), str(path))

        return lambda: tap(run, seen)

    return lambda number: seen_by([0]) if number == victim else None


if __name__ == "__main__":
    main(refusals, cases=600)
