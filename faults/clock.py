"""A clock that jumps by up to a day in either direction at each reading: results and workers are unaffected."""

import datetime
import random
import time
from collections.abc import Sequence

from campaign import Campaign, main
from child import Fault, traceback_in
from modes import MODES, finish, log, undisturbed, warm

ORDER = ("sequential", "threads", "vmapped", "ranks", "study", "analyze")


def jumps(campaign: Campaign, modes: Sequence[str] = ORDER) -> None:
    warm()
    for case in range(campaign.cases):
        name = modes[case % len(modes)]
        mode = MODES[name]
        reference = campaign.folder / f"{name}-undisturbed"
        if not reference.exists():
            undisturbed(mode, campaign.folder)
        run = campaign.folder / f"{name}-{case}"
        mode.prepared(run, reference)
        codes = finish(mode, run, lambda number, case=case: jumping(f"{campaign.seed} {case} {number}"))
        campaign.count(f"jumps in {name}")
        campaign.expect(not any(codes), f"{run.name}: {codes} {log(run).read_text()[-800:]}")
        campaign.expect(not (told := traceback_in(log(run))), f"{run.name}: {told}")
        campaign.expect(not (wrong := mode.different(reference, run)), f"{run.name}: differs in {wrong}")
        campaign.progress(case + 1)


def jumping(seed: str) -> Fault:
    """Make the wall clock jump, which no duration may depend on; the monotonic clock does not jump."""
    draw, right = random.Random(seed), time.time

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Jumping":
            return cls.fromtimestamp(time.time(), tz)

    def jump() -> None:
        time.time = lambda: right() + draw.uniform(-86400, 86400)
        datetime.datetime = Jumping

    return jump


if __name__ == "__main__":
    main(jumps, cases=24)
