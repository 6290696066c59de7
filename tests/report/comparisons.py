"""Comparisons of small synthetic runs."""

from pathlib import Path

from swamp.report.comparison import Comparison, compare
from swamp.report.run_records import read_run

from .runs import cycle, write_run


def example(folder: Path, methods: int = 2, seeds: int = 3, metric: str = "accuracy", **config: str) -> Comparison:
    """Method k gains 0.01 k over imp at every seed, give or take 0.001; the last density has collapsed to 10 %."""
    dirs: list[Path] = []
    for k in range(methods):
        for seed in range(seeds):
            levels = [0.9, 0.91, 0.905, 0.9, 0.89, 0.1]
            cycles = [
                cycle(c, 0.5**c, a + 0.01 * k + 0.01 * seed + 0.001 * k * (seed - 1), (a,) * (k + 1))
                for c, a in enumerate(levels)
            ]
            method = f"method{k}" if k else "imp"
            dirs.append(write_run(folder / f"{method}-{seed}", cycles, method=method, seed=seed, **config))
    return compare([read_run(path) for path in dirs], metric=metric)


def costly(folder: Path, seeds: int = 3, metric: str = "accuracy", baseline: str | None = None) -> Comparison:
    """Four methods at two sparsities: `a` is best at 50 % sparsity and not measured at 90 %, `b` close to it."""
    accuracy = {"a": (0.90, None), "b": (0.899, 0.8), "c": (0.85, 0.79), "d": (0.80, 0.7)}
    runs: list[Path] = []
    for k, (method, each) in enumerate(accuracy.items()):
        for seed in range(seeds):
            wobble = 0.002 * (seed - 1) if method == "b" else 0.0
            cycles = [
                cycle(c, density, value + wobble, flops=100.0 * (k + 1), total=cost)
                for c, (density, value) in enumerate(zip((0.5, 0.1), each, strict=True))
                if value is not None
                for cost in [{"steps": 1, "samples": 1, "flops": 100.0 * (k + 1), "seconds": 1, "sequential_steps": 1}]
            ]
            runs.append(write_run(folder / f"{method}-{seed}", cycles, method=method, seed=seed))
    dense = [cycle(0, 1.0, 0.95, flops=200.0)]
    runs.append(write_run(folder / "dense", dense, method="dense", seed=0))
    read = [read_run(path) for path in runs]
    return compare(read, metric=metric, baseline=baseline, sparsities=[0.5, 0.9])
