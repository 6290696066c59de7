"""Do masks transfer? Sources of IMP and SWAMP by target, sparsity and what is kept: `python benchmarks/transfer.py`.

python benchmarks/transfer.py [PAIR ...] [--seeds 5] [--out build/transfer]

Each target is trained by one training (imp) on the transferred mask, so that only the source differs; `native` is the
mask that imp finds on the target itself. Finished runs are read, interrupted ones continued. Writes transfer.md and
transfer.svg to the folder.
"""

import argparse
import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import matplotlib.pyplot as plt

from swamp.algorithms.plan import Transfer
from swamp.datasets import fashion
from swamp.datasets.problem import DataOptions
from swamp.recipes import configuration
from swamp.report.statistics import interval, paired
from swamp.runs.config import RunConfig
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import resume, start
from swamp.runs.run_progress import Reporter

DENSITIES = (1.0, 0.6, 0.36, 0.2, 0.1, 0.05)
SPARSITIES = (0.8, 0.9, 0.95)
SOURCES = ("imp", "swamp")
PAIRS = {
    "fashion-mnist": ("fashion-mnist-lenet", ("fashion-mnist", "0-4"), ("fashion-mnist", "5-9")),
    "mnist1d": ("mnist1d-mlp", ("mnist1d-10k", ""), ("mnist1d-shifted", "")),
    "digits": ("digits-mlp", ("digits", "0-4"), ("digits", "5-9")),
}
"""Name -> recipe, source and target, each a task and its classes."""
EXAMPLES = {"fashion-mnist": 4000, "mnist1d": 3600, "digits": 0}
EPOCHS = {"fashion-mnist": 8, "mnist1d": 8, "digits": 20}
MODELS = {"fashion-mnist": "lenet-300-100", "mnist1d": "mlp-bn-200-100", "digits": "mlp-64-32"}
Result = dict[tuple[str, float], dict[int, float]]
"""(row, sparsity) -> seed -> test accuracy in %."""


def base(pair: str, task: tuple[str, str], seed: int, **plan: Any) -> RunConfig:
    config = configuration(PAIRS[pair][0])
    name, classes = task
    return replace(
        config,
        task=name,
        model=MODELS[pair],
        data=DataOptions(examples=EXAMPLES[pair], classes=classes),
        training=replace(config.training, epochs=EPOCHS[pair]),
        plan=replace(config.plan, seed=seed, barrier_points=0, **plan),
        backend="sequential",
        keep_checkpoints="means",
        threads=1,
    )


def done(config: RunConfig, path: Path) -> dict[str, Any]:
    """The summary of a run, which is read, continued or started."""
    directory = RunDirectory(path)
    if directory.summary.exists():
        return directory.read(directory.summary)
    if directory.config.exists():
        return resume(path, Reporter(), Event())
    return start(config, path, Reporter(), Event())


def at(summary: Mapping[str, Any], sparsity: float) -> float:
    near = min(summary["cycles"], key=lambda cycle: abs(cycle["sparsity"] - sparsity))
    return 100 * near["test"]["accuracy"]


def measured(pair: str, seed: int, out: Path) -> Iterator[tuple[str, float, float]]:
    """(row, sparsity, accuracy on the target) of one seed."""
    _, source, target = PAIRS[pair]
    native = done(base(pair, target, seed, method="imp", densities=DENSITIES), out / f"{pair}-native-{seed}")
    yield "dense", 0.0, at(native, 0.0)
    for sparsity in SPARSITIES:
        yield "native", sparsity, at(native, sparsity)
    for method in SOURCES:
        path = out / f"{pair}-source-{method}-{seed}"
        found = done(base(pair, source, seed, method=method, particles=(4,), densities=DENSITIES), path)
        for sparsity in SPARSITIES:
            yield f"source {method}", sparsity, at(found, sparsity)
            for keep in ("weights", "mask", "sparsity"):
                taken = Transfer(str(path), keep)
                config = base(pair, target, seed, method="imp", sparsity=sparsity, ticket_epochs=0, transfer=taken)
                reached = done(config, out / f"{pair}-{method}-{keep}-{sparsity}-{seed}")
                yield f"{method} {keep}", sparsity, at(reached, sparsity)


def table(pair: str, found: Result) -> Iterator[str]:
    def cell(row: str, sparsity: float) -> str:
        mean, half = interval([*found[row, sparsity].values()])
        return f"{mean:.1f} ±{half:.1f}"

    recipe, source, target = PAIRS[pair]
    seeds = len(next(iter(found.values())))
    named = [f"{task} {classes}".strip() for task, classes in (source, target)]
    about = f"{recipe} with {MODELS[pair]}, {EPOCHS[pair]} epochs, {seeds} seeds"
    yield f"\n**{named[0]} to {named[1]}** ({about}); dense {cell('dense', 0.0)}\n"
    yield "| kept | source | " + " | ".join(f"{100 * sparsity:g} %" for sparsity in SPARSITIES) + " |"
    yield "|---|---|" + "---:|" * len(SPARSITIES)
    for keep in ("weights", "mask", "sparsity"):
        for method in SOURCES:
            yield f"| {keep} | {method} | " + " | ".join(cell(f"{method} {keep}", one) for one in SPARSITIES) + " |"
        each = [paired(found[f"swamp {keep}", one], found[f"imp {keep}", one]) for one in SPARSITIES]
        yield f"| {keep} | swamp - imp | " + " | ".join(f"{one.mean:+.1f} ±{one.half:.1f}" for one in each) + " |"
    yield "| target's own mask | imp | " + " | ".join(cell("native", one) for one in SPARSITIES) + " |"
    for method in SOURCES:
        cells = " | ".join(cell(f"source {method}", one) for one in SPARSITIES)
        yield f"| accuracy on the source's task | {method} | {cells} |"


def draw(results: Mapping[str, Result], path: Path) -> None:
    figure, axes = plt.subplots(1, len(results), figsize=(3.6 * len(results), 3.2), squeeze=False)
    shown = [100 * sparsity for sparsity in SPARSITIES]
    styles = {"weights": "-", "mask": "--", "sparsity": ":"}
    for axis, (pair, found) in zip(axes[0], results.items(), strict=True):
        for method, colour in zip(SOURCES, ("tab:gray", "tab:blue"), strict=True):
            for keep, style in styles.items():
                means = [interval([*found[f"{method} {keep}", one].values()])[0] for one in SPARSITIES]
                axis.plot(
                    [100 * one for one in SPARSITIES], means, style, color=colour, marker=".", label=f"{method}, {keep}"
                )
        native = [interval([*found["native", one].values()])[0] for one in SPARSITIES]
        axis.plot(shown, native, color="tab:green", label="target's own mask")
        axis.set(title=pair, xlabel="sparsity %", xticks=shown)
    axes[0][0].set_ylabel("test accuracy on the target, %")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.set_layout_engine("constrained")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", default=[*PAIRS], help=", ".join(PAIRS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/transfer"))
    given = parser.parse_args()
    # Each run would unpack and check 60,000 images again.
    fashion.load_idx = functools.cache(fashion.load_idx)
    results: dict[str, Result] = {}
    for pair in given.pairs:
        found = results.setdefault(pair, {})
        for seed in range(given.seeds):
            for row, sparsity, accuracy in measured(pair, seed, given.out):
                found.setdefault((row, sparsity), {})[seed] = accuracy
            print(f"{pair}, seed {seed}: done", flush=True)
        print("\n".join(table(pair, found)), flush=True)
    (given.out / "transfer.md").write_text("\n".join("\n".join(table(*one)) for one in results.items()) + "\n")
    draw(results, given.out / "transfer.svg")


if __name__ == "__main__":
    main()
