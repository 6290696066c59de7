"""SIGTERM and SIGINT, once and twice, at random moments: the run saves, reports, exits with the code, and resumes."""

import random
import signal
import sys
import time
from collections.abc import Sequence

from audit import redone
from campaign import Campaign, main
from child import started, traceback_in
from modes import MODES, Workers, finish, log, undisturbed, warm

ORDER = ("sequential", "threads", "vmapped", "ranks", "study", "analyze")
ASKED = {"SIGTERM": (signal.SIGTERM,), "SIGINT": (signal.SIGINT,), "SIGINT twice": (signal.SIGINT, signal.SIGINT)}


def signals(campaign: Campaign, modes: Sequence[str] = ORDER) -> None:
    warm()
    known = {name: undisturbed(MODES[name], campaign.folder) for name in modes}
    for case in range(campaign.cases):
        name = modes[case % len(modes)]
        mode, (reference, seconds), draw = MODES[name], known[name], random.Random(f"{campaign.seed} {case}")
        words = draw.choice(list(ASKED))
        run = campaign.folder / f"{name}-{case}"
        mode.prepared(run, reference)
        children = mode.go(run)
        time.sleep(draw.uniform(0, seconds))
        for number in ASKED[words]:
            # As a terminal or torchrun does: to all processes.
            for child in children:
                child.signal(number)
            time.sleep(draw.uniform(0, 0.05))
        codes = [child.wait() for child in children]
        what = f"{run.name}: {words}, exit codes {codes}"
        # SIGTERM before a command has installed its handler ends it by the default action.
        good = {0, 128 + ASKED[words][0], -ASKED[words][0] if words == "SIGTERM" else 0}
        good |= {4, 130, 143} if name == "ranks" else set()
        campaign.count(f"{words}: {'stopped' if any(codes) else 'was done'}")
        campaign.expect(good.issuperset(codes), f"{what} {log(run).read_text()[-800:]}")
        campaign.expect(not (told := traceback_in(log(run))), f"{what}: {told}")
        said = "swamp:" in log(run).read_text() or not any(code > 0 for code in codes)
        campaign.expect(said or isinstance(mode, Workers), f"{what}: no message")
        codes = finish(mode, run)
        campaign.expect(not any(codes), f"{what}: does not continue: {codes} {log(run).read_text()[-800:]}")
        campaign.expect(not (wrong := mode.different(reference, run)), f"{what}: differs in {wrong}")
        found = redone(run.with_suffix(".audit"))
        campaign.count("finished particles redone", found.particles)
        campaign.count("steps redone", found.steps)
        campaign.expect(not found.particles, f"{what}: repeated finished work: {found}")
        polite = len(ASKED[words]) == 1 and name in ("sequential", "study")
        campaign.expect(
            not (polite and found.steps), f"{what}: after one request to stop, {found.steps} steps were repeated"
        )
        campaign.progress(case + 1)


_HELP = "import swamp.cli; print('begun', flush=True); swamp.cli.main(['run', '--help'])"


def impatient(campaign: Campaign) -> None:
    """SIGINT during the import of torch, which takes seconds."""
    for case in range(campaign.cases):
        draw = random.Random(f"{campaign.seed} {case}")
        record = campaign.folder / f"impatient-{case}.log"
        child = started([sys.executable, "-c", _HELP], record)
        while "begun" not in record.read_text() and child.code() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 2.0))
        child.signal(signal.SIGINT)
        code = child.wait()
        campaign.count("while importing" if code else "was done")
        campaign.expect(code in (0, 130), f"impatient-{case}: exit code {code} {record.read_text()[-800:]}")
        campaign.expect("Traceback" not in record.read_text(), f"impatient-{case}: {record.read_text()[-3000:]}")


def both(campaign: Campaign) -> None:
    signals(campaign)
    impatient(Campaign(campaign.folder, campaign.cases // 10, campaign.seed, campaign.counts, campaign.wrong))


if __name__ == "__main__":
    main(both, cases=200)
