"""What a budget buys: `swamp run --budget` beside fixed methods at the same cost (docs/explanation/adaptive.md).

    python benchmarks/budget.py mnist1d-mlp digits-mlp --budgets 4 12 40 --seeds 5 --out FOLDER   (again: it goes on)

Each fixed method has the cycles of the recipe and the epochs that the budget leaves. Differences are paired by seed.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from finished import test_accuracy
from swamp.errors import SwampError
from swamp.recipes import configuration
from swamp.report.statistics import interval
from swamp.runs.budget import Allotment, allot
from swamp.runs.config import RunConfig

FIXED = {
    "swamp, N = 4": ("swamp", (4,)),
    "swamp, N = 2": ("swamp", (2,)),
    "imp": ("imp", (1,)),
    "sms, N = 4": ("sms", (4,)),
    "lrr, all cycles": ("lrr", (1,)),
    "swamp-late-carry, N = 4": ("swamp-late-carry", (4,)),
}
KEPT = ("method", "particles", "prune_fraction")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--budgets", nargs="+", type=float, default=[4, 12, 40])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for recipe in given.recipes:
        print(f"\n{recipe}: test accuracy at the last sparsity, % (difference to --budget, points, 95 % interval)\n")
        print("| budget | --budget | " + " | ".join(FIXED) + " |\n" + "|---" * (len(FIXED) + 2) + "|")
        for budget in given.budgets:
            print(_row(recipe, budget, given.seeds, given.out / recipe / f"{budget:g}"), flush=True)


def _row(recipe: str, budget: float, seeds: int, out: Path) -> str:
    base = configuration(recipe, "", "")
    chosen = allot(base.plan, base.training, budget)
    own = [test_accuracy(_config(base, chosen, seed), out / f"budget-{seed}") for seed in range(seeds)]
    cells = [f"**{_mean(own)}** ({chosen.sentence.partition(':')[0]})"]
    for name, (method, particles) in FIXED.items():
        try:
            fixed = allot(replace(base.plan, method=method, particles=particles), base.training, budget, KEPT)
        except SwampError:
            cells.append("–")
            continue
        folder = name.replace(", N = ", "-").replace(", ", "-").replace(" ", "-")
        found = [test_accuracy(_config(base, fixed, seed), out / f"{folder}-{seed}") for seed in range(seeds)]
        mean, half = interval([one - other for one, other in zip(found, own, strict=True)])
        cells.append(f"{_mean(found)} ({mean:+.1f} ±{half:.1f})")
    return f"| {budget:g} | " + " | ".join(cells) + " |"


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1f}"


def _config(base: RunConfig, found: Allotment, seed: int) -> RunConfig:
    plan = replace(found.plan, seed=seed)
    return replace(base, plan=plan, training=found.training, keep_checkpoints="means", backend="sequential")


if __name__ == "__main__":
    main()
