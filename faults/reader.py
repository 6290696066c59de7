"""Data loading processes: one is killed, or reads an image that was damaged after the start of the run."""

import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from campaign import Campaign, main
from child import traceback_in
from modes import Mode, finish, log, tiny, undisturbed, warm


def readers(campaign: Campaign) -> None:
    warm()
    images = campaign.folder / "images"
    mode = reading(images)
    reference, seconds = undisturbed(mode, campaign.folder)
    for case in range(campaign.cases):
        draw = random.Random(f"{campaign.seed} {case}")
        run = campaign.folder / f"reader-{case}"
        fault = ("killed", "damaged")[case % 2]
        victim = draw.choice(sorted(images.glob("train/*/*.png")))
        whole = victim.read_bytes()
        (child,) = mode.go(run)
        while not (run / "config.json").exists() and child.code() is None:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, seconds / 4))
        if fault == "damaged":
            victim.write_bytes(whole[: len(whole) // 2])
        else:
            kill_reader(child.pid)
        code = child.wait()
        victim.write_bytes(whole)
        campaign.count(fault if code else "came too late")
        told = log(run).read_text()
        what = f"reader-{case}: {fault}, exit code {code}"
        # A killed process may have delivered its last batch; then nothing is missing.
        campaign.expect(code in (0, 2), f"{what} {told[-1500:]}")
        campaign.expect(not (found := traceback_in(log(run))), f"{what}: {found}")
        campaign.expect(code == 0 or "swamp:" in told, f"{what} and printed no message")
        campaign.expect(code == 0 or fault == "killed" or victim.name in told, f"{what}, not named: {told[-800:]}")
        codes = finish(mode, run)
        campaign.expect(not any(codes), f"{what}: does not continue: {codes} {log(run).read_text()[-800:]}")
        campaign.expect(not (wrong := mode.different(reference, run)), f"{what}: differs in {wrong}")
        campaign.progress(case + 1)


def reading(images: Path) -> Mode:
    """A run on image files with one data loading process."""
    make_images(images)
    config = tiny(task="image-folder", model="mlp-8", trajectory_every=0)
    data = replace(config.data, folder=str(images), workers=1, examples=0)
    plan = replace(config.plan, particles=(1,), sparsity=0.5)
    training = replace(config.training, epochs=2, batch_size=8)
    return Mode("reader", replace(config, data=data, plan=plan, training=training))


def make_images(folder: Path) -> None:
    from PIL import Image

    draw = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for kind in ("left", "right"):
            place = folder / part / kind
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{number}.png")


def kill_reader(pid: int) -> None:
    """Kill the data loading process of `pid`, if there is one."""
    until = time.monotonic() + 30
    while time.monotonic() < until and Path(f"/proc/{pid}").exists():
        try:
            words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for word in words:
                os.kill(int(word), signal.SIGKILL)
                return
        except (OSError, ValueError):
            pass


if __name__ == "__main__":
    main(readers, cases=40)
