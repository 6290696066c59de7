"""Runs the commands of docs/reference/figures.md in build/gallery, and copies the pictures that the page shows.

Finished runs are not repeated: remove build/gallery to start again. `--draw` leaves out analyses too.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "figures.md"
WORK = ROOT / "build" / "gallery"
PICTURES = ROOT / "docs" / "images" / "gallery"
ELSEWHERE = {
    "compare.png": "comparison/compare.png",
    "overlap-masks.png": "overlap/masks.png",
    "cross.png": "cross/cross.png",
    "ticket.svg": "ticket/barrier.svg",
}
"""Pictures of commands that name a folder: name on the page -> file."""
SCALE = 1000 / 2070
"""From pixels of a drawing, which is 2070 wide for a page, to those of its picture: words have one size in all."""


def commands(page: str) -> list[list[str]]:
    """The arguments of swamp in each command of the page."""
    return [line.split() for line in re.findall(r"^\$ swamp (.*)$", page, re.MULTILINE)]


def main() -> None:
    """Run the commands, and copy the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="repeat only the commands that draw from finished runs")
    draw = parser.parse_args().draw
    WORK.mkdir(parents=True, exist_ok=True)
    page = PAGE.read_text()
    for arguments in commands(page):
        finished = arguments[0] == "run" and (WORK / arguments[-1] / "summary.json").exists()
        if finished or (draw and arguments[0] in ("analyze", "noise", "ticket")):
            continue
        print("swamp", *arguments, flush=True)
        subprocess.run([sys.executable, "-m", "swamp", *arguments], cwd=WORK, check=True)
    PICTURES.mkdir(exist_ok=True)
    for name in re.findall(r"images/gallery/([\w.-]+)", page):
        copy(WORK / ELSEWHERE.get(name, name), PICTURES / name)


def copy(drawn: Path, target: Path) -> None:
    """An SVG as it is; a picture with few colours, smaller by SCALE."""
    if drawn.suffix == ".svg":
        shutil.copy(drawn, target)
        return
    picture = Image.open(drawn).convert("RGB")
    size = round(SCALE * picture.width), round(SCALE * picture.height)
    picture.resize(size, Image.Resampling.LANCZOS).quantize(96).save(target, optimize=True)


if __name__ == "__main__":
    main()
