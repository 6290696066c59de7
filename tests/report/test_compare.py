import json
from pathlib import Path
from typing import Any

import pytest
import torch

from swamp.api.origin import describe
from swamp.errors import SwampError
from swamp.report.comparison import compare
from swamp.report.run_records import RunRecord, read_run
from swamp.report.write import free_folder
from swamp.training import Task

from .runs import cycle, write_run


def run(path: Path, cycles: list[dict[str, Any]], **config: Any) -> RunRecord:
    return read_run(write_run(path, cycles, **config))


def one(path: Path, accuracy: float = 0.9, particles: tuple[float, ...] = (), **config: Any) -> RunRecord:
    return run(path, [cycle(0, 1.0, accuracy, particles)], **config)


def test_means_differences_particles_and_barrier_are_the_ones_worked_out_by_hand(tmp_path: Path) -> None:
    imp, swamp = (0.5, 0.6, 0.7), (0.51, 0.62, 0.73)
    runs = [one(tmp_path / f"i{s}", a, seed=s) for s, a in enumerate(imp)]
    runs += [one(tmp_path / f"s{s}", a, (a - 0.02, a - 0.04), method="swamp", seed=s) for s, a in enumerate(swamp)]
    comparison = compare(runs)
    assert comparison.labels == ("imp", "swamp (2)")
    assert comparison.baseline == "imp"
    row = comparison.rows[0]
    cell, difference = row.cells["swamp (2)"], row.differences["swamp (2)"]
    # s = 0.11; t(0.975, 2) / sqrt(3) = 2.484138.
    assert (cell.mean, cell.half) == (pytest.approx(0.62), pytest.approx(0.2732552, abs=1e-6))
    assert (cell.particles, cell.barrier) == (pytest.approx(0.59), pytest.approx(0.004))
    assert (difference.mean, difference.half) == (pytest.approx(0.02), pytest.approx(0.02484138, abs=1e-7))
    assert (difference.n, difference.better, len(comparison.differences)) == (3, 3, 1)
    assert row.best == ("swamp (2)",)
    assert row.cells["imp"].barrier is None
    assert comparison.dense == pytest.approx(0.6)


def test_a_barrier_that_was_not_finite_is_unknown(tmp_path: Path) -> None:
    unknown = cycle(0, 0.5, 0.9, (0.8, 0.9), barrier={"pair": None, "mean": -0.1})
    assert compare([read_run(write_run(tmp_path / "run", [unknown], method="swamp"))]).points[0].barrier is None


def test_the_label_counts_the_most_particles_of_any_cycle(tmp_path: Path) -> None:
    plus = run(tmp_path / "a", [cycle(0, 1.0, 0.9), cycle(1, 0.8, 0.9, (0.9,) * 4)], method="swamp+")
    assert compare([plus]).labels == ("swamp+ (4)",)


def test_a_run_stopped_in_its_one_particle_cycles_shares_the_label_of_its_siblings(tmp_path: Path) -> None:
    whole = run(tmp_path / "a", [cycle(0, 1.0, 0.9), cycle(1, 0.8, 0.9, (0.9,) * 4)], method="swamp+", seed=0)
    assert compare([whole, one(tmp_path / "b", method="swamp+", seed=1)]).labels == ("swamp+ (4)",)


def test_runs_of_one_seed_get_the_settings_that_differ_and_only_those(tmp_path: Path) -> None:
    runs = [
        one(tmp_path / f"{lr}-{seed}", training={"lr": lr, "epochs": 2}, seed=seed)
        for lr in (0.1, 0.05)
        for seed in (0, 1)
    ]
    comparison = compare(runs)
    assert comparison.labels == ("imp, training.lr=0.1", "imp, training.lr=0.05")
    assert {cost.seeds for cost in comparison.costs.values()} == {2}
    assert comparison.notes == ()


def test_a_setting_that_an_older_run_lacks_has_its_default(tmp_path: Path) -> None:
    older, newer = one(tmp_path / "a", seed=0), one(tmp_path / "b", seed=1, training={"ema": 0.0}, trajectory_every=0)
    assert compare([older, newer]).notes == ()


def test_seeds_pooled_over_different_settings_are_noted(tmp_path: Path) -> None:
    comparison = compare([one(tmp_path / "a", seed=0), one(tmp_path / "b", seed=1, training={"lr": 0.2})])
    assert comparison.labels == ("imp",)
    assert "training.lr" in comparison.notes[0]


def test_the_same_run_twice_is_refused_with_both_directories(tmp_path: Path) -> None:
    with pytest.raises(SwampError, match=r"one .*two are the same run"):
        compare([one(tmp_path / "one"), one(tmp_path / "two")])


@pytest.mark.parametrize("key", ["task", "model"])
def test_different_tasks_or_models_are_refused_by_name(tmp_path: Path, key: str) -> None:
    first, second = {key: "first"}, {key: "second"}
    runs = [run(tmp_path / "a", [cycle(0, 1.0, 0.9)], **first), run(tmp_path / "b", [cycle(0, 1.0, 0.9)], **second)]
    with pytest.raises(SwampError, match=rf"different {key}s.*first.*second"):
        compare(runs)


def test_densities_half_a_per_cent_apart_share_a_row_and_further_ones_do_not(tmp_path: Path) -> None:
    imp = run(tmp_path / "a", [cycle(0, 1.0, 0.9), cycle(1, 0.2, 0.8)])
    near = run(tmp_path / "b", [cycle(0, 1.0, 0.9), cycle(1, 0.2005, 0.8)], method="lrr")
    far = run(tmp_path / "c", [cycle(0, 1.0, 0.9), cycle(1, 0.2011, 0.8)], method="sms")
    rows = compare([far, near, imp]).rows
    assert [(row.density, set(row.cells)) for row in rows] == [
        (1.0, {"imp", "lrr", "sms"}),
        (0.2011, {"sms"}),
        (0.2, {"imp", "lrr"}),
    ]
    assert "sms" not in rows[1].differences


def test_a_run_that_keeps_its_density_has_a_row_for_each_cycle(tmp_path: Path) -> None:
    runs = [run(tmp_path / str(s), [cycle(0, 0.1, 0.8), cycle(1, 0.1, 0.9)], seed=s, method="rigl") for s in (0, 1)]
    assert [(row.cells["rigl"].mean, row.cells["rigl"].n) for row in compare(runs).rows] == [
        (pytest.approx(0.8), 2),
        (pytest.approx(0.9), 2),
    ]


@pytest.mark.parametrize(("metric", "best"), [("accuracy", "swamp"), ("nll", "swamp"), ("ece", "swamp")])
def test_best_is_the_lowest_if_lower_is_better_and_the_difference_keeps_its_sign(
    tmp_path: Path, metric: str, best: str
) -> None:
    comparison = compare([one(tmp_path / "a", 0.8), one(tmp_path / "b", 0.9, method="swamp")], metric=metric)
    assert comparison.rows[0].best == (best,)
    assert (comparison.rows[0].differences["swamp"].mean > 0) == (metric == "accuracy")


def test_the_baseline_is_the_one_asked_for_else_imp_else_the_first(tmp_path: Path) -> None:
    lrr, swamp, imp = (one(tmp_path / name, method=name) for name in ("lrr", "swamp", "imp"))
    assert compare([lrr, swamp, imp]).baseline == "imp"
    assert compare([lrr, swamp]).baseline == "lrr"
    assert compare([lrr, swamp], baseline="swamp").baseline == "swamp"
    with pytest.raises(SwampError, match=r"unknown baseline 'swam'. Did you mean swamp"):
        compare([lrr, swamp], baseline="swam")


def test_a_metric_or_split_that_was_not_measured_says_what_was(tmp_path: Path) -> None:
    runs = [one(tmp_path / "a")]
    with pytest.raises(SwampError, match=r"unknown metric 'acuracy'. Did you mean accuracy"):
        compare(runs, metric="acuracy")
    with pytest.raises(SwampError, match="none of the runs measured the validation split"):
        compare(runs, split="validation")
    with pytest.raises(SwampError, match="unknown split 'tets'"):
        compare(runs, split="tets")
    with pytest.raises(SwampError, match="no run was given"):
        compare([])


def test_cost_is_the_sum_over_cycles_and_the_mean_over_seeds(tmp_path: Path) -> None:
    first = run(tmp_path / "a", [cycle(0, 1.0, 0.9), cycle(1, 0.8, 0.9)], seed=0)
    second = one(tmp_path / "b", seed=1)
    cost = compare([first, second]).costs["imp"]
    assert (cost.steps, cost.samples, cost.seconds, cost.cycles, cost.particles) == (150, 1500, 3.0, (1, 2), 1)


def test_the_dense_line_is_the_mean_of_the_baselines_cycle_0(tmp_path: Path) -> None:
    cycles = [cycle(0, 1.0, 0.9), cycle(1, 0.8, 0.5)]
    runs = [run(tmp_path / "a", cycles), one(tmp_path / "b", 0.8, seed=1), one(tmp_path / "c", 0.1, method="swamp")]
    assert compare(runs).dense == pytest.approx(0.85)


def test_json_is_strict_although_one_seed_has_no_interval(tmp_path: Path) -> None:
    plain = compare([one(tmp_path / "a"), one(tmp_path / "b", method="swamp")]).to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["rows"][0]["differences"]["swamp"]["half"] is None
    assert plain["rows"][0]["sparsity"] == 0


def at_seeds(folder: Path, methods: dict[str, tuple[float, ...]]) -> list[RunRecord]:
    return [
        one(folder / f"{name}-{seed}", accuracy, method=name, seed=seed)
        for name, accuracies in methods.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def test_tied_methods_do_not_differ_significantly_from_the_best(tmp_path: Path) -> None:
    methods = {
        "best": (0.80, 0.84, 0.91),
        "steady": (0.79, 0.83, 0.90),  # always 0.01 below: told apart although its own interval overlaps widely
        "close": (0.82, 0.82, 0.90),  # +0.02, -0.02, -0.01: -0.0033 give or take 0.052
        "once": (0.80,),
    }
    row = compare(at_seeds(tmp_path, methods), baseline="close").rows[0]
    assert row.best == ("best",)
    assert row.tied == ("close",)
    assert row.to_best["steady"].mean == pytest.approx(-0.01)


def test_the_baseline_best_is_the_best_method_of_each_sparsity(tmp_path: Path) -> None:
    imp = run(tmp_path / "i", [cycle(0, 1.0, 0.9), cycle(1, 0.5, 0.7)])
    lrr = run(tmp_path / "l", [cycle(0, 1.0, 0.85), cycle(1, 0.5, 0.8)], method="lrr")
    comparison = compare([lrr, imp], baseline="best")
    assert [{label: pytest.approx(d.mean) for label, d in row.differences.items()} for row in comparison.rows] == [
        {"lrr": -0.05},
        {"imp": -0.1},
    ]
    assert (comparison.baseline, len(comparison.differences)) == ("best", 2)
    assert (comparison.dense_label, comparison.dense) == ("imp", pytest.approx(0.9))


def test_the_dense_line_is_of_another_method_if_the_baseline_was_never_dense(tmp_path: Path) -> None:
    imp = run(tmp_path / "i", [cycle(0, 1.0, 0.9), cycle(1, 0.5, 0.7)])
    snip = run(tmp_path / "s", [cycle(0, 0.5, 0.6)], method="snip")
    comparison = compare([snip, imp], baseline="snip")
    assert (comparison.dense_label, comparison.dense) == ("imp", pytest.approx(0.9))
    assert compare([snip]).dense is None


def test_only_the_sparsities_asked_for_are_kept_and_costs_stay_those_of_whole_runs(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", [cycle(0, 1.0, 0.9), cycle(1, 0.5, 0.8), cycle(2, 0.2, 0.7)])]
    comparison = compare(runs, sparsities=[0.8, 0.5])
    assert [row.density for row in comparison.rows] == [0.5, 0.2]
    assert [(point.row, point.density) for point in comparison.points] == [(0, 0.5), (1, 0.2)]
    assert comparison.costs["imp"].steps == 300
    assert comparison.dense == pytest.approx(0.9)
    # 0.5 % of the density 0.2 is 0.001.
    assert [row.density for row in compare(runs, sparsities=[0.8009]).rows] == [0.2]
    with pytest.raises(SwampError, match=r"no run has sparsity 0\.8011.*there is 0, 0\.5, 0\.8\."):
        compare(runs, sparsities=[0.5, 0.8011])


@pytest.mark.parametrize("metric", ["unexplained_variance", "val_mse"])
def test_the_lowest_is_best_by_the_name_of_any_metric(metric, tmp_path):
    runs = []
    for method, value in {"imp": 0.2, "swamp": 0.1}.items():
        for seed in range(2):
            measured = {**cycle(0, 1.0, 0.5), "test": {metric: value}}
            runs.append(read_run(write_run(tmp_path / f"{method}{seed}", [measured], method=method, seed=seed)))
    assert compare(runs).rows[0].best == ("swamp",)


def test_another_comparison_is_written_beside_the_one_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("compare.json").write_text('{"made_by": {"runs": 1}}')
    assert free_folder(Path(), {"runs": 1}) == Path()
    assert free_folder(Path(), {"runs": 2}) == tmp_path / "here-2"


@pytest.mark.parametrize("higher", [True, False])
def test_the_better_direction_is_that_of_the_task(tmp_path: Path, higher: bool) -> None:
    def energy(path: str, value: float, method: str) -> RunRecord:
        at = cycle(0, 0.5, 0.9) | {"test": {"energy": value, "loss": value}}
        return run(tmp_path / path, [at], method=method, origin={"higher_is_better": higher})

    runs = [energy("a", 1.0, "imp"), energy("b", 2.0, "swamp")]
    found = compare(runs)
    assert found.lower_is_better is not higher
    assert found.rows[0].best == (("swamp",) if higher else ("imp",))
    # It is said of the first metric alone.
    assert compare(runs, metric="loss").rows[0].best == ("imp",)


def test_a_run_records_the_direction_that_its_task_states() -> None:
    data, model = torch.zeros(4, 2), torch.nn.Linear(2, 1)
    for higher in (True, False, None):
        task = Task.custom(data, lambda m, b: m(b).sum(), lambda m: {"energy": 0.0}, higher_is_better=higher)
        assert describe(model, task, None).get("higher_is_better") is higher
