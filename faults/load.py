"""A study of 1,000 tiny runs on 4 workers that share one directory and are killed at times: each run is done once."""

import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from campaign import Campaign, main
from child import Child, Fault, forked, traceback_in
from modes import tiny, warm
from swamp.runs import study_queue
from swamp.runs.config import RunConfig
from swamp.runs.study_queue import StudyDirectory

WORKERS = 4


def load(campaign: Campaign) -> None:
    """Run the campaign; `cases` is the number of runs."""
    warm()
    path, notes = campaign.folder / "study", campaign.folder / "notes"
    study = StudyDirectory.join(path, {f"run-{number:04d}": smallest(number) for number in range(campaign.cases)})
    draw, workers = random.Random(campaign.seed), dict[int, Child]()
    kill_at = time.monotonic() + draw.uniform(0.5, 3)
    # With --wait, workers end only when every run is finished or failed.
    while not workers or any(child.code() != 0 for child in workers.values()):
        for number in range(WORKERS):
            child = workers.get(number)
            if child is None or child.code() == -signal.SIGKILL:
                command = ["study", "--worker", path, "--wait"]
                workers[number] = forked(command, campaign.folder / "log", noting(notes))
                campaign.count("workers started")
            elif (code := child.code()) is not None and code != 0:
                campaign.fail(f"a worker ended with {code}: {child.told()[-2000:]}")
                return
        if time.monotonic() > kill_at:
            workers[draw.randrange(WORKERS)].signal(signal.SIGKILL)
            kill_at = time.monotonic() + draw.uniform(0.5, 3)
        campaign.progress(sum(line.startswith("ended") for line in _lines(notes)))
        time.sleep(0.2)
    _count(campaign, study, _lines(notes))
    campaign.expect(not (told := traceback_in(campaign.folder / "log")), told)


def smallest(seed: int) -> RunConfig:
    config = tiny(model="mlp-4", trajectory_every=0, keep_checkpoints="means", snapshot_seconds=0.05)
    plan = replace(
        config.plan, method="imp", particles=(1,), prune_fraction=(0.5,), sparsity=0.5, ticket_epochs=0, seed=seed
    )
    training = replace(config.training, epochs=1, swa_fraction=0.0)
    return replace(config, plan=plan, training=training, data=replace(config.data, examples=200))


def noting(notes: Path) -> Fault:
    """Log which runs a worker starts, whether they were already finished, and which it finishes."""

    def prepare() -> None:
        handle = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        settle = study_queue._settle  # pyright: ignore[reportPrivateUsage]

        def noted(study: StudyDirectory, name: str, *others: object) -> bool:
            done = study.run(name).summary.exists()
            os.write(handle, f"{'again' if done else 'begun'} {name}\n".encode())
            over: bool = settle(study, name, *others)  # pyright: ignore[reportArgumentType]
            os.write(handle, f"ended {name}\n".encode())
            return over

        study_queue._settle = noted  # pyright: ignore[reportPrivateUsage]

    return prepare


def _count(campaign: Campaign, study: StudyDirectory, lines: list[str]) -> None:
    states = Counter(study.state(name).state for name in study.runs)
    ended = Counter(line.split()[1] for line in lines if line.startswith("ended"))
    begun = Counter(line.split()[1] for line in lines if line.startswith("begun"))
    campaign.count("finished", states["finished"])
    campaign.count("failed", states["failed"])
    campaign.count("lost", len(study.runs) - states["finished"] - states["failed"])
    campaign.count("started by one worker and finished by another", sum(number > 1 for number in begun.values()))
    twice = sum(number > 1 for number in ended.values()) + sum(line.startswith("again") for line in lines)
    campaign.count("done twice", twice)
    records = sum(study.run(name).finished for name in study.runs)
    campaign.expect(states["finished"] == len(study.runs), f"{states} of {len(study.runs)} runs")
    campaign.expect(not twice, f"{twice} runs were done twice")
    campaign.expect(records == 2 * len(study.runs), f"{records} records of {2 * len(study.runs)} cycles")


def _lines(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []


if __name__ == "__main__":
    main(load, cases=1000)
