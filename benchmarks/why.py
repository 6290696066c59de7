"""Claims about the loss landscape, from analysed runs: `python benchmarks/why.py FOLDER`, a study's folder.

FOLDER contains runs METHOD-SEED of imp, imp-swa, swamp-no-swa and swamp, analysed with `swamp analyze`. Claim 4: error
barriers between particles and between consecutive means. Claim 5: the trace of the Hessian at the model of each cycle,
as ratios paired by seed. Hull: correlation of its size with the gain of averaging.
"""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from swamp.analysis.analysis_tasks import read_analysis
from swamp.errors import SwampError
from swamp.report.statistics import interval

METHODS = ("imp", "imp-swa", "swamp-no-swa", "swamp")
Records = dict[str, dict[int, dict[str, Any]]]


def read(folder: Path) -> Records:
    """Method -> seed -> key -> record."""
    found: Records = {}
    for run in sorted(folder.iterdir()):
        method, _, seed = run.name.rpartition("-")
        if method in METHODS and seed.isdigit() and (records := read_analysis(run)):
            found.setdefault(method, {})[int(seed)] = {record["key"]: record for record in records}
    if "swamp" not in found:
        raise SwampError(f"{folder} has no analysed run of swamp. Analyse one: swamp analyze {folder}/swamp-0")
    return found


def shown(values: Iterable[float | None]) -> str:
    """Mean and 95 % confidence interval."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    if len(there) < 2:
        return f"{there[0]:.3g}" if there else "–"
    mean, half = interval(there)
    return f"{mean:.3g} ±{half:.2g}"


def cycles(records: Records) -> list[tuple[int, float]]:
    one = next(iter(records["swamp"].values()))
    return sorted(
        (r["cycle"], r["sparsity"]) for key, r in one.items() if key.startswith("curvature/") and "mean" in key
    )


def barriers(records: Records, console: Console) -> None:
    table = Table("sparsity %", *(f"{m} {what}" for m in ("swamp", "swamp-no-swa", "imp") for what in ("pair", "next")))
    for index, sparsity in cycles(records):
        cells = [
            shown(
                100 * run[key]["barrier"]["error"]
                for run in records.get(method, {}).values()
                if (key := f"barriers/cycle-{index:02d}/{what}") in run
            )
            for method in ("swamp", "swamp-no-swa", "imp")
            for what in ("particles", "next")
        ]
        table.add_row(f"{100 * sparsity:.1f}", *cells)
    console.print("Error barriers, points of validation error", table)


def traces(records: Records, console: Console, part: str) -> None:
    pairs = [("imp-swa", "imp"), ("swamp-no-swa", "imp"), ("swamp", "imp-swa"), ("swamp", "imp")]
    table = Table("sparsity %", *METHODS, *(f"{a} / {b}" for a, b in pairs))
    for index, sparsity in cycles(records):
        key = f"curvature/cycle-{index:02d}/mean"
        values = {
            method: {seed: run[key][part]["mean"] for seed, run in seeds.items() if key in run}
            for method, seeds in records.items()
        }
        ratios = [_ratio(values.get(a, {}), values.get(b, {})) for a, b in pairs]
        table.add_row(f"{100 * sparsity:.1f}", *(shown(values.get(m, {}).values()) for m in METHODS), *ratios)
    console.print(f"Trace of the Hessian ({part}) at the model of each cycle, and ratios paired by seed", table)


def _ratio(above: dict[int, float], below: dict[int, float]) -> str:
    logs = [math.log(above[seed] / below[seed]) for seed in sorted(above.keys() & below.keys())]
    if len(logs) < 2:
        return "–"
    mean, half = interval(logs)
    return f"{math.exp(mean):.2f} ({math.exp(mean - half):.2f} to {math.exp(mean + half):.2f})"


def hull(records: Records, console: Console) -> None:
    sizes = ("radius", "mean_distance", "dimension", "sparsity")
    table = Table("rank correlation over cycles with", *sizes)
    for gain in ("gain", "loss_gain"):
        runs = [run["hull/all"][gain] for run in records["swamp"].values() if "hull/all" in run]
        table.add_row(gain, *(shown(run[size] for run in runs) for size in sizes))
    console.print("Hull of the particles of swamp: rank correlation of its size with the gain of averaging", table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    records, console = read(parser.parse_args().folder), Console(width=160)
    barriers(records, console)
    for part in ("active", "trace"):
        traces(records, console, part)
    hull(records, console)


if __name__ == "__main__":
    main()
