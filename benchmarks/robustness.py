"""How sensitive SWAMP is to its settings: one at a time around a recipe (docs/explanation/adaptive.md).

    python benchmarks/robustness.py digits-mlp --seeds 10 --out FOLDER --figure robustness.svg   (again: it goes on)

Prints the difference in test accuracy at the last sparsity, paired by seed, and draws it.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from finished import test_accuracy
from swamp.recipes import configuration
from swamp.report.statistics import interval
from swamp.runs.config import RunConfig

OF_PLAN = ("particles", "prune_fraction", "ticket_epochs", "branch")


def factors(config: RunConfig) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Setting -> (value as text, fields) for each value that is tried."""
    lr, plan, training = config.training.lr, config.plan, config.training
    return {
        "particles": [(str(n), {"particles": (n,)}) for n in (1, 2, 4, 8) if (n,) != plan.particles]
        + [("auto", {"particles": ("auto",)})],
        "prune fraction": [(f"{f:g}", {"prune_fraction": (f,)}) for f in (0.2, 0.4, 0.6, 0.8)],
        "ticket, epochs": [(f"{e:g}", {"ticket_epochs": e}) for e in (0, 0.5, 2, 4) if e != plan.ticket_epochs],
        "learning rate": [(f"{lr * f:g}", {"lr": lr * f}) for f in (0.3, 3)],
        "SWA rate": [(f"{f:g}", {"swa_lr": f}) for f in (0.1, 0.3, 1.0) if f != training.swa_lr],
        "SWA fraction": [(f"{f:g}", {"swa_fraction": f}) for f in (0.25, 0.75) if f != training.swa_fraction],
        "branch": [(f"{b:g}", {"branch": b}) for b in (0.25, 0.5)],
        "weight decay": [(f"{w:g}", {"weight_decay": w}) for w in (0.0, 2e-3)],
        "epochs": [(f"{training.epochs * f:g}", {"epochs": round(training.epochs * f)}) for f in (0.5, 2, 4)],
        "optimizer": [
            ("adamw, lr 0.01", {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.01}),
            ("SAM, radius 0.05", {"sam": 0.05}),
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    base = replace(configuration(given.recipe, "", ""), keep_checkpoints="means", backend="sequential")
    seeds = range(given.seeds)

    def accuracies(name: str, fields: dict[str, Any]) -> list[float]:
        plan = replace(base.plan, **{key: value for key, value in fields.items() if key in OF_PLAN})
        training = replace(base.training, **{key: value for key, value in fields.items() if key not in OF_PLAN})
        configs = [replace(base, plan=replace(plan, seed=seed), training=training) for seed in seeds]
        return [test_accuracy(one, given.out / f"{name}-{one.plan.seed}") for one in configs]

    default = accuracies("default", {})
    print(f"{given.recipe}: {sum(default) / len(default):.1f} % with its own settings, {given.seeds} seeds\n")
    print("| setting | value | difference, points |\n|---|---|---:|")
    rows: list[tuple[str, float, float]] = []
    for factor, values in factors(base).items():
        for value, fields in values:
            found = accuracies(f"{factor}-{value}".replace(" ", "-").replace(",", ""), fields)
            mean, half = interval([one - other for one, other in zip(found, default, strict=True)])
            rows.append((f"{factor} {value}", mean, half))
            print(f"| {factor} | {value} | {mean:+.1f} ±{half:.1f} |", flush=True)
    if given.figure:
        draw(rows, given.figure, given.recipe)


def draw(rows: list[tuple[str, float, float]], path: Path, recipe: str) -> None:
    """Intervals of the differences, one line for each value."""
    names, means, halves = zip(*rows, strict=True)
    figure, axes = plt.subplots(figsize=(6, 0.24 * len(rows) + 1))
    axes.axvline(0, color="0.6", linewidth=1)
    axes.errorbar(means, range(len(rows)), xerr=halves, fmt="o", color="#0072b2", capsize=2)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"difference to {recipe}, points of accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
