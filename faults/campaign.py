"""Common parts of the campaigns: options, counts, working folder and last line."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from child import alone


@dataclass
class Campaign:
    """Counts cases and failures. A case depends only on `seed` and its number."""

    folder: Path
    cases: int
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])
    said: float = 0.0

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] += number

    def fail(self, what: str) -> None:
        """Record a failed expectation: the campaign continues, and ends with exit code 1."""
        self.wrong.append(what)
        print(f"WRONG {what}", flush=True)

    def expect(self, good: object, what: str) -> None:
        if not good:
            self.fail(what)

    def progress(self, done: int) -> None:
        if time.monotonic() - self.said > 5:
            self.said = time.monotonic()
            print(f"{done} of {self.cases} cases: {self.line()}", flush=True)

    def line(self) -> str:
        return ", ".join(f"{number} {name}" for name, number in self.counts.items())


def main(campaign: Callable[[Campaign], None], cases: int) -> None:
    """Run a campaign from the command line."""
    parser = argparse.ArgumentParser(description=(sys.modules["__main__"].__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=cases)
    parser.add_argument("--seed", type=int, default=0, help="another one tries other moments")
    given = parser.parse_args()
    began = time.monotonic()
    # In memory if possible: only the order of changes is tested, for which a disk is slower and no better.
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="swamp-faults-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        done = Campaign(Path(folder), given.cases, given.seed)
        with alone():
            campaign(done)
    name = Path(sys.argv[0]).stem
    print(f"{name}: {done.line()}, {len(done.wrong)} wrong ({time.monotonic() - began:.0f} s, seed {given.seed})")
    sys.exit(bool(done.wrong))
