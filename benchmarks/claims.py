"""Mean compared with particles, and barriers, of a study: `python benchmarks/claims.py RUN...`.

For each cycle, over the given runs (one per seed): accuracy of the mean minus the average accuracy of its particles,
and the error barriers.
"""

import argparse
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from swamp.report.run_records import read_run
from swamp.report.statistics import interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    cycles = list(zip(*(read_run(path).cycles for path in parser.parse_args().runs), strict=True))
    table = Table("sparsity %", "mean - particles, test points", "barrier pair", "barrier mean", "runs with a warning")
    for seeds in cycles:
        gains = [100 * (c["test"]["accuracy"] - fmean(p["test"]["accuracy"] for p in c["particles"])) for c in seeds]
        mean, half = interval(gains)
        barriers = [c["barrier"] for c in seeds]
        table.add_row(
            f"{100 * seeds[0]['sparsity']:.2f}",
            f"{mean:+.2f} ±{half:.2f}",
            *(f"{100 * fmean(b[key] for b in barriers):.2f}" for key in ("pair", "mean")),
            f"{sum(any('barrier' in w for w in c['warnings']) for c in seeds)} of {len(seeds)}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
