"""Interquartile means of returns over seeds: `python benchmarks/rl.py STUDY [STUDY ...] [--out build/rl.md]`.

Each STUDY is the folder of a study of one environment, such as that of benchmarks/studies/cartpole-ppo.toml; finished
runs are read, others are left out. The score of a run is (return - worst) / (best - worst) of its environment. The
table has the interquartile mean over all runs of a method, and its 95 % interval by a bootstrap that draws seeds within
each environment (Agarwal et al. 2021, arXiv:2108.13264; their library rliable computes the same, and its
dependency arch does not import beside pandas 3).
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import trim_mean

from swamp.runs.config import RunConfig
from swamp.runs.directory import RunDirectory

RANGES = {
    "cartpole-ppo": (0, 500),
    "acrobot-ppo": (-500, 0),
    "lunarlander-dqn": (-300, 300),
    "minatar-breakout-dqn": (0, 30),
    "minatar-asterix-dqn": (0, 30),
}
"""Task -> returns with the scores 0 and 1."""
DENSE = 0.0
Scores = Mapping[str, Sequence[float]]
"""Environment -> score of each seed."""


def interquartile_mean(scores: Scores) -> float:
    """The mean of all scores without the lowest and the highest quarter (rounded down)."""
    return float(trim_mean(np.concatenate([np.asarray(each, float) for each in scores.values()]), 0.25))


def bootstrap_interval(scores: Scores, draws: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the interquartile mean, with as many seeds drawn from each environment."""
    random = np.random.default_rng(seed)
    found = [
        interquartile_mean({name: random.choice(np.asarray(each), len(each)) for name, each in scores.items()})
        for _ in range(draws)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def read(studies: Sequence[Path]) -> dict[str, dict[float, dict[str, list[float]]]]:
    """Method -> sparsity in % -> scores by environment, of all finished runs."""
    found: dict[str, dict[float, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in sorted(file.parent for study in studies for file in study.rglob("summary.json")):
        directory = RunDirectory(path)
        config = RunConfig.load(directory.config)
        worst, best = RANGES[config.task]
        for cycle in directory.read(directory.summary)["cycles"]:
            sparsity = round(100 * cycle["sparsity"], 1)
            score = (cycle["test"]["return"] - worst) / (best - worst)
            found[config.plan.method][sparsity][config.task].append(score)
    return found


def table(found: Mapping[str, Mapping[float, Scores]]) -> str:
    sparsities = sorted({sparsity for cells in found.values() for sparsity in cells})
    lines = [
        "| method | " + " | ".join("dense" if one == DENSE else f"{one:g} %" for one in sparsities) + " | runs |",
        "|---|" + "---:|" * (len(sparsities) + 1),
    ]
    for method, cells in found.items():
        shown: list[str] = []
        for sparsity in sparsities:
            scores = cells.get(sparsity)
            if not scores:
                shown.append("-")
                continue
            low, high = bootstrap_interval(scores)
            shown.append(f"{interquartile_mean(scores):.2f} ({low:.2f} to {high:.2f})")
        runs = max(sum(map(len, scores.values())) for scores in cells.values())
        lines.append(f"| {method} | {' | '.join(shown)} | {runs} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/rl.md"))
    given = parser.parse_args()
    text = table(read(given.studies))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
