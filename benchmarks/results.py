"""The studies of docs/results.md: `make results`, or `python benchmarks/results.py mnist1d --seeds 5`.

Every run is a run directory under build/results; a finished one is skipped, an interrupted one goes on.
"""

import argparse
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from rich.console import Console

from swamp.live import Quiet
from swamp.recipes import recipe_named
from swamp.report import compare, print_table, read_run, write_comparison
from swamp.runs import RunConfig, resume, start


@dataclass(frozen=True)
class Study:
    """Methods (with their particles) on one recipe, every setting but the method shared."""

    recipe: str
    methods: tuple[tuple[str, int], ...]
    epochs: int = 0
    """Epochs a cycle, where not the recipe's."""
    ticket_epochs: float = 0.0
    """Epochs before the ticket is taken, where not the recipe's."""


# The methods of the claims, then the controls: the tail alone, and equal cost twice.
ALL = (
    ("imp", 1),
    ("swamp", 4),
    ("imp-swa", 1),
    ("swamp-no-swa", 4),
    ("imp-ensemble", 2),
    ("imp-ensemble", 3),
    ("imp-tail", 1),
    ("imp-long", 4),
    ("imp-best", 4),
)
STUDIES = {
    "mnist1d": Study("mnist1d-mlp", ALL),
    "fashion-mnist": Study("fashion-mnist-lenet", ALL),
    # Does the gain survive where training is long enough that more of it helps little?
    "mnist1d-long": Study("mnist1d-mlp", (("imp", 1), ("swamp", 4), ("imp-swa", 1), ("imp-long", 4)), epochs=80),
    # It does not: is the ticket too early for so long a training?
    "mnist1d-long-late": Study("mnist1d-mlp", (("imp", 1), ("swamp", 4)), epochs=80, ticket_epochs=8),
}


def runs(name: str, seeds: int) -> Iterator[tuple[RunConfig, Path]]:
    study = STUDIES[name]
    config = recipe_named(study.recipe)()
    training = replace(config.training, epochs=study.epochs or config.training.epochs)
    for seed in range(seeds):
        for method, particles in study.methods:
            plan = replace(config.plan, method=method, particles=(particles,), seed=seed, sparsity=0.97)
            plan = replace(plan, ticket_epochs=study.ticket_epochs or plan.ticket_epochs)
            path = Path("build/results") / name / f"{method}-{particles}-{seed}"
            yield replace(config, plan=plan, training=training, keep="means"), path


def work(job: tuple[RunConfig, Path]) -> str:
    config, path = job
    if (path / "summary.json").exists():
        return f"{path} was finished"
    done = resume(path, Quiet(), Event()) if (path / "config.json").exists() else start(config, path, Quiet(), Event())
    return f"{path} test accuracy {100 * done['test']['accuracy']:.2f} % in {done['seconds']:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    for study in given.studies:
        jobs = list(runs(study, given.seeds))
        with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
            for done, line in enumerate(pool.imap(work, jobs), 1):
                print(f"[{done}/{len(jobs)}] {line}", flush=True)
        report(study, [path for _, path in jobs])


def report(study: str, paths: list[Path]) -> None:
    comparison = compare([read_run(path) for path in paths], baseline="imp")
    write_comparison(comparison, Path("build/results") / f"{study}-comparison")
    print_table(comparison, Console(width=110))


if __name__ == "__main__":
    main()
