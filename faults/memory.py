"""Out of memory: a process may allocate only little more. It reports this, and the run continues with enough memory."""

import random
import resource
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from campaign import Campaign, main
from child import Fault, traceback_in
from modes import MODES, Mode, Workers, different, finish, log, undisturbed, warm

ORDER = ("sequential", "threads", "vmapped", "ranks", "study", "analyze")


def shortages(campaign: Campaign, modes: Sequence[str] = ORDER) -> None:
    warm()
    known = {name: undisturbed(thirsty(MODES[name]), campaign.folder)[0] for name in modes}
    for case in range(campaign.cases):
        name = modes[case % len(modes)]
        mode, reference, draw = thirsty(MODES[name]), known[name], random.Random(f"{campaign.seed} {case}")
        more = round(2 ** draw.uniform(20, 26))
        run = campaign.folder / f"{name}-{case}"
        mode.prepared(run, reference)
        codes = finish(mode, run, lambda number, more=more: None if number else limited(more))
        what = f"{run.name}: {more >> 10} KB more, exit codes {codes}"
        failed = list(run.glob("*/failed.json"))
        campaign.count("went on without" if not any(codes) and not failed else "had too little")
        # With very little memory the C library ends a process before Python can print a message.
        campaign.count("ended by the C library", sum(code in (127, -signal.SIGABRT) for code in codes))
        good = {0, 2, 4, 127, 130, 143, -signal.SIGABRT}
        campaign.expect(good.issuperset(codes), f"{what} {log(run).read_text()[-1500:]}")
        campaign.expect(not (told := traceback_in(log(run))), f"{what}: {told}")
        for file in failed:
            campaign.expect("Traceback" not in file.read_text(), f"{what}: {file.read_text()[-2000:]}")
        if isinstance(mode, Workers):
            mode.prepared(run, reference)
        codes = finish(mode, run)
        campaign.expect(not any(codes), f"{what}: does not continue: {codes} {log(run).read_text()[-800:]}")
        campaign.expect(not (wrong := different(reference, run, records=False)), f"{what}: differs in {wrong}")
        # Seen once: a record made with very little memory had other numbers, with equal weights.
        campaign.count("records that differ", bool(mode.different(reference, run)))
        campaign.progress(case + 1)


def thirsty(mode: Mode) -> Mode:
    """The mode with a network that needs more memory."""
    return replace(mode, config=replace(mode.config, model="lenet-300-100", trajectory_every=0))


def limited(more: int) -> Fault:
    """Limit a process to `more` bytes beyond its present memory."""

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return limit


if __name__ == "__main__":
    main(shortages, cases=120)
