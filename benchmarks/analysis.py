"""Cost of the analyses of a run, relative to the CPU time of the run: `python benchmarks/analysis.py`.

LeNet-300-100 on Fashion-MNIST, 10 cycles of 4 particles, then all analyses. Also 100 points of a segment, evaluated by
`PointEvaluator` and by evaluating one model at a time. Both parts of a ratio run alternately in one process, so that
other load on the machine slows down both.
"""

import argparse
import copy
import tempfile
from pathlib import Path
from threading import Event
from time import process_time

from torch import nn

from swamp.analysis import ANALYSES
from swamp.analysis.analysis_tasks import AnalysisSettings, analyze
from swamp.analysis.point_evaluator import PointEvaluator
from swamp.analysis.run_data import RunData
from swamp.analysis.weight_space import LinearCombination
from swamp.recipes import recipe_named
from swamp.runs.config import RunConfig
from swamp.runs.execute import prepare, start
from swamp.runs.run_progress import Reporter
from swamp.training import Task, evaluate, with_reestimated_batchnorm


def cost_of_analyses(cycles: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        config = recipe_named("fashion-mnist-lenet")()
        plan = {**config.to_json()["plan"], "cycles": cycles, "prune_fraction": [0.3], "sparsity": 1 - 0.7**cycles}
        started = process_time()
        start(RunConfig.from_json({**config.to_json(), "plan": plan}), path, Reporter(), Event())
        run = process_time() - started
        print(f"run of {cycles} pruning steps, 4 particles  {run:6.1f} s of CPU time")
        run_data, settings, total = RunData.open(path), AnalysisSettings(), 0.0
        for name, analysis in ANALYSES.items():
            started = process_time()
            list(analyze(run_data, analysis(run_data, settings), settings))
            spent = process_time() - started
            total += spent
            print(f"  {name:12} {spent:6.1f} s  {100 * spent / run:5.1f} % of the run")
        print(f"  {'all':12} {total:6.1f} s  {100 * total / run:5.1f} %")


def evaluate_each(model: nn.Module, task: Task, combinations: list[LinearCombination]) -> None:
    scratch = copy.deepcopy(model)
    for combination in combinations:
        scratch.load_state_dict(combination.weights())
        evaluate(with_reestimated_batchnorm(scratch, task.train, examples=1000), task, task.held_out, examples=1000)


def points_at_once(recipe: str, repeats: int = 5) -> None:
    problem, model = prepare(recipe_named(recipe)())
    task = problem.task
    ends = (
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: value + 0.1 if value.is_floating_point() else value for name, value in model.state_dict().items()},
    )
    combinations = [LinearCombination(ends, (1 - k / 99, k / 99)) for k in range(100)]
    evaluator, times = PointEvaluator(model, task, examples=1000), ([], [])
    for _ in range(repeats):
        for spent, work in zip(
            times, (lambda: evaluate_each(model, task, combinations), lambda: evaluator(combinations)), strict=True
        ):
            started = process_time()
            work()
            spent.append(process_time() - started)
    single, several = map(min, times)
    print(
        f"{recipe:20} 100 points: {10 * single:.1f} ms each one by one, {10 * several:.1f} ms each at once: "
        f"{single / several:.1f} times as fast"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=10)
    given = parser.parse_args()
    for name in ("fashion-mnist-lenet", "mnist1d-mlp", "digits-mlp"):
        points_at_once(name)
    cost_of_analyses(given.cycles)
