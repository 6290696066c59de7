"""What looking into a run costs, in processor time of the run itself: `python benchmarks/analysis.py`.

LeNet-300-100 on Fashion-MNIST, 10 cycles of 4 particles, then all analyses; and 100 points of a segment evaluated at
once beside 100 evaluations of one network. Both parts of a ratio run in turn in one process, so that a busy machine
hurts both.
"""

import argparse
import copy
import tempfile
from pathlib import Path
from threading import Event
from time import process_time

from torch import nn

from swamp.analysis import ANALYSES, AnalysisSettings, PointEvaluator, RunData, analyze
from swamp.analysis.weight_space import LinearCombination
from swamp.cli.progress import Quiet
from swamp.recipes import recipe_named
from swamp.runs import RunConfig, prepare, start
from swamp.training import Task, evaluate, refreshed


def whole(cycles: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        config = recipe_named("fashion-mnist-lenet")()
        plan = {**config.to_json()["plan"], "cycles": cycles, "prune_fraction": [0.3], "sparsity": 1 - 0.7**cycles}
        begun = process_time()
        start(RunConfig.from_json({**config.to_json(), "plan": plan}), path, Quiet(), Event())
        run = process_time() - begun
        print(f"run of {cycles} prunings, 4 particles     {run:6.1f} s of processor")
        run_data, total = RunData.open(path), 0.0
        for name, analysis in ANALYSES.items():
            begun = process_time()
            for _ in analyze(run_data, {name: analysis}, AnalysisSettings()):
                pass
            spent = process_time() - begun
            total += spent
            print(f"  {name:12} {spent:6.1f} s  {100 * spent / run:5.1f} % of the run")
        print(f"  {'all':12} {total:6.1f} s  {100 * total / run:5.1f} %")


def one_by_one(model: nn.Module, task: Task, blends: list[LinearCombination]) -> None:
    scratch = copy.deepcopy(model)
    for blend in blends:
        scratch.load_state_dict(blend.weights())
        evaluate(refreshed(scratch, task.train, batches=4), task, task.held_out, examples=1000)


def together(recipe: str, repeats: int = 5) -> None:
    problem, model = prepare(recipe_named(recipe)())
    task = problem.task
    ends = (
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: value + 0.1 if value.is_floating_point() else value for name, value in model.state_dict().items()},
    )
    blends = [LinearCombination(ends, (1 - share / 99, share / 99)) for share in range(100)]
    points, times = PointEvaluator(model, task, examples=1000), ([], [])
    for _ in range(repeats):
        for spent, work in zip(times, (lambda: one_by_one(model, task, blends), lambda: points(blends)), strict=True):
            begun = process_time()
            work()
            spent.append(process_time() - begun)
    single, several = map(min, times)
    print(
        f"{recipe:20} 100 points: {10 * single:.1f} ms each alone, {10 * several:.1f} at once: {single / several:.1f} x"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=10)
    given = parser.parse_args()
    for name in ("fashion-mnist-lenet", "mnist1d-mlp", "digits-mlp"):
        together(name)
    whole(given.cycles)
