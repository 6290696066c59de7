"""A rank that freezes: the job ends within the heartbeat timeout and names the rank, and the run can be resumed."""

import random
import signal
import time
from dataclasses import replace

from campaign import Campaign, main
from child import traceback_in
from modes import MODES, finish, log, undisturbed, warm

SECONDS = 3.0


def frozen(campaign: Campaign) -> None:
    warm()
    mode = replace(MODES["ranks"], config=replace(MODES["ranks"].config, heartbeat_seconds=SECONDS))
    reference, seconds = undisturbed(mode, campaign.folder)
    for case in range(campaign.cases):
        draw = random.Random(f"{campaign.seed} {case}")
        run = campaign.folder / f"frozen-{case}"
        children = mode.go(run)
        while not (run / "config.json").exists() and children[0].code() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, seconds / 2))
        victim = 1  # not rank 0, which hosts the store where there is no torchrun
        children[victim].signal(signal.SIGSTOP)
        other = children[1 - victim].wait(60)
        children[victim].signal(signal.SIGKILL)
        children[victim].wait()
        campaign.count("frozen" if other else "froze too late")
        told = log(run).read_text()
        what = f"frozen-{case}: rank {victim}, the other ended with {other}"
        campaign.expect(other in (0, 4), f"{what} {told[-1500:]}")
        campaign.expect(other == 0 or f"rank {victim} (" in told, f"{what} and did not name it: {told[-1500:]}")
        campaign.expect(not (found := traceback_in(log(run))), f"{what}: {found}")
        codes = finish(mode, run)
        campaign.expect(not any(codes), f"{what}: does not continue: {codes}")
        campaign.expect(not (wrong := mode.different(reference, run)), f"{what}: differs in {wrong}")
        campaign.progress(case + 1)


if __name__ == "__main__":
    main(frozen, cases=20)
