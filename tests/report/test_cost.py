"""The cost of a model, over all cycles or of one training, and the ranking of methods by cost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from swamp.errors import SwampError
from swamp.report.comparison import Comparison, compare
from swamp.report.cost import cost_unit
from swamp.report.page import summary_sentences
from swamp.report.run_records import RunRecord, read_run
from swamp.report.tables import comparison_markdown

from .runs import cycle, write_run


def run(path: Path, cycles: list[dict[str, Any]], method: str = "imp", seed: int = 0) -> RunRecord:
    return read_run(write_run(path, cycles, method=method, seed=seed))


def priced(number: int, density: float, accuracy: float, flops: float, total: float) -> dict[str, Any]:
    """A cycle of 100 steps; its model took `total` FLOPs in all, and a step for each."""
    sums = {"steps": total, "samples": 10 * total, "flops": total, "seconds": 0.0, "sequential_steps": total}
    return cycle(number, density, accuracy, flops=flops, total=sums)


def at_one_sparsity(
    folder: Path, methods: Mapping[str, tuple[float, tuple[float, ...]]], metric: str = "accuracy"
) -> Comparison:
    """Methods by name: what a model took, and its accuracy for each seed. One dense training takes 100 FLOPs."""
    runs = [run(folder / "dense", [priced(0, 1.0, 0.9, 100, 100)], "dense")]
    for name, (total, accuracies) in methods.items():
        for seed, accuracy in enumerate(accuracies):
            one = [priced(0, 0.1, accuracy, total, total)]
            runs.append(run(folder / f"{name}-{seed}", one, name, seed))
    return compare(runs, metric=metric, sparsities=[0.9])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"flops": "many", "total": {}}, "'flops' is not a number"),
        ({"flops": True}, "'flops' is not a number"),
        ({"total": 3}, "'total' is not an object"),
        ({"total": None}, "'total' is not an object"),
        ({"sequential_steps": None}, "'sequential_steps' is not a number"),
        ({"total": {"steps": 1, "samples": 1, "seconds": 1}}, "'total.flops' is not a number"),
        ({"total": {"steps": 1, "samples": 1, "flops": 1.0}}, "'total.seconds' is not a number"),
        ({"total": {"steps": 1, "samples": 1, "flops": "1", "seconds": 1}}, "'total.flops' is not a number"),
    ],
)
def test_a_damaged_cost_is_named(tmp_path: Path, field: dict[str, Any], message: str) -> None:
    with pytest.raises(SwampError, match=rf"line 1 is damaged: {message}"):
        run(tmp_path / "a", [cycle(0, 1.0, 0.9, **field)])


def test_an_independent_method_pays_for_one_training_and_an_iterative_one_for_all(tmp_path: Path) -> None:
    imp = run(
        tmp_path / "i", [priced(0, 1.0, 0.9, 100, 100), priced(1, 0.5, 0.9, 60, 160), priced(2, 0.1, 0.9, 20, 180)]
    )
    snip = run(tmp_path / "s", [priced(0, 0.5, 0.8, 55, 55), priced(1, 0.1, 0.8, 15, 15)], "snip")
    comparison = compare([imp, snip])
    unit = comparison.unit
    assert (unit.measure, unit.dense, unit.heading) == ("flops", 100, "× dense")
    assert [[unit.of(cell.total) for cell in row.cells.values()] for row in comparison.rows] == [
        [1.0],
        [1.6, 0.55],
        [1.8, 0.15],
    ]
    costs = comparison.costs
    assert (unit.of(costs["imp"]), unit.of(costs["imp"].last)) == (1.8, 1.8)
    assert (unit.of(costs["snip"]), unit.of(costs["snip"].last)) == (0.7, 0.15)


def test_one_dense_training_is_the_cheapest_dense_cycle_of_one_particle(tmp_path: Path) -> None:
    swamp = cycle(0, 1.0, 0.9, (0.9, 0.9), flops=50.0)  # not of one particle
    runs = [
        run(tmp_path / "sam", [priced(0, 1.0, 0.9, 200, 200)], "imp-sam"),
        run(tmp_path / "imp", [priced(0, 1.0, 0.9, 100, 100)]),
        run(tmp_path / "swamp", [swamp], "swamp"),
        run(tmp_path / "snip", [priced(0, 0.1, 0.9, 12, 12)], "snip"),
    ]
    assert compare(runs).unit.dense == 100
    alone = compare(runs[2:]).unit
    assert (alone.dense, alone.heading, alone.show(2.5)) == (None, "TFLOP", "2.5")
    assert alone.of(compare(runs[2:3]).costs["swamp (2)"]) == pytest.approx(50e-12)


def test_one_run_without_flops_makes_steps_the_unit_of_all_costs(tmp_path: Path) -> None:
    old = run(tmp_path / "i", [cycle(0, 1.0, 0.9), cycle(1, 0.1, 0.8)])
    new = run(tmp_path / "s", [priced(0, 0.1, 0.7, 12, 50)], "snip")
    comparison = compare([old, new])
    assert comparison.unit.heading == "× dense steps"
    assert "Not every run recorded its FLOPs" in comparison.unit.meaning
    assert [(rank.label, rank.cost) for rank in comparison.rows[1].cost_ranking] == [("snip", 0.5), ("imp", 2.0)]


def test_at_equal_time_four_particles_take_the_time_of_one(tmp_path: Path) -> None:
    def timed(steps: int, sequential: int, particles: tuple[float, ...] = ()) -> dict[str, Any]:
        total = {"steps": steps, "samples": 1, "flops": float(steps), "seconds": 1.0, "sequential_steps": sequential}
        own = {name: total[name] for name in ("steps", "flops", "sequential_steps")}
        return cycle(0, 1.0, 0.9, particles, **own, total=total)

    runs = [
        run(tmp_path / "imp", [timed(100, 100)]),
        run(tmp_path / "long", [timed(400, 400)], "imp-long"),
        run(tmp_path / "swamp", [timed(400, 100, (0.9,) * 4)], "swamp"),
    ]
    costs = {rank.label: rank.cost for rank in compare(runs, at="equal-cost").rows[0].cost_ranking}
    times = compare(runs, at="equal-time")
    assert costs == {"imp": 1.0, "imp-long": 4.0, "swamp (4)": 4.0}
    assert {rank.label: rank.cost for rank in times.rows[0].cost_ranking} == {
        "imp": 1.0,
        "imp-long": 4.0,
        "swamp (4)": 1.0,
    }
    assert times.unit.heading == "× dense time"
    shown = comparison_markdown(times, at="equal-time")
    assert "each on a worker of its own" in shown
    assert "against the best" in shown


def test_the_cost_ranking_worked_out_by_hand(tmp_path: Path) -> None:
    comparison = at_one_sparsity(
        tmp_path,
        {
            "swamp": (400, (0.80, 0.82, 0.84)),
            "imp": (200, (0.82, 0.83, 0.84)),
            "rigl": (104, (0.72, 0.72, 0.75)),
            "snip": (100, (0.70, 0.70, 0.70)),
            "late": (410, (0.83, 0.86, 0.89)),
        },
    )
    ranking = {rank.label: rank for rank in comparison.rows[0].cost_ranking}
    assert list(ranking) == ["snip", "rigl", "imp", "swamp", "late"]
    assert [rank.cost for rank in ranking.values()] == [1.0, 1.04, 2.0, 4.0, 4.1]
    # RigL at 1.04 is no more cost than SNIP's 1.00, and late at 4.1 is none than SWAMP's 4.0.
    assert [rank.label for rank in ranking.values() if rank.front] == ["rigl", "imp", "late"]
    assert {label: rank.against for label, rank in ranking.items()} == {
        "snip": "rigl",
        "rigl": "snip",
        "imp": "rigl",
        "swamp": "late",
        "late": "imp",
    }
    # SWAMP - late: -0.03, -0.04, -0.05; t(0.975, 2) / sqrt(3) = 2.484138 times s = 0.01.
    difference = ranking["swamp"].difference
    assert difference is not None
    assert (difference.mean, difference.half) == (pytest.approx(-0.04), pytest.approx(0.02484138, abs=1e-7))
    assert (
        json.loads(json.dumps(comparison.to_json(), allow_nan=False))["rows"][0]["cost_ranking"][0]["against"] == "rigl"
    )


def test_beyond_five_per_cent_more_cost_a_better_method_does_not_count(tmp_path: Path) -> None:
    cheap, dear = at_one_sparsity(tmp_path, {"a": (100, (0.7, 0.7)), "b": (106, (0.8, 0.8))}).rows[0].cost_ranking
    assert (cheap.front, cheap.against, cheap.difference) == (True, None, None)
    assert (dear.front, dear.against) == (True, "a")


def test_the_front_falls_with_cost_if_lower_is_better(tmp_path: Path) -> None:
    methods = {"a": (100, (0.7, 0.7)), "b": (200, (0.6, 0.6)), "c": (400, (0.8, 0.8))}
    ranking = at_one_sparsity(tmp_path, methods, "nll").rows[0].cost_ranking
    assert [(rank.label, rank.front, rank.against) for rank in ranking] == [
        ("a", True, None),
        ("b", False, "a"),
        ("c", True, "a"),
    ]
    difference = ranking[2].difference
    assert difference is not None
    assert difference.mean == pytest.approx(-0.1)


def test_a_diverged_method_is_not_on_the_front_and_no_method_is_compared_with_it(tmp_path: Path) -> None:
    methods = {"a": (100, (float("nan"), 0.9)), "b": (200, (0.6, 0.6))}
    ranking = at_one_sparsity(tmp_path, methods).rows[0].cost_ranking
    assert [(rank.label, rank.front, rank.against) for rank in ranking] == [("a", False, None), ("b", True, None)]


def unequal(folder: Path, methods: Mapping[str, tuple[float, dict[int, float]]], **options: Any) -> Comparison:
    """Methods by name: what a model took, and its accuracy by seed."""
    return compare(
        [
            run(folder / f"{name}-{seed}", [priced(0, 0.1, accuracy, total, total)], name, seed)
            for name, (total, accuracies) in methods.items()
            for seed, accuracy in accuracies.items()
        ],
        **options,
    )


def test_methods_of_unequal_seeds_are_ranked_over_those_they_share(tmp_path: Path) -> None:
    # GMP has the two easiest seeds: its mean of 0.86 is above IMP's 0.84, and it is worse on both of them.
    imp = {0: 0.80, 1: 0.82, 2: 0.84, 3: 0.86, 4: 0.88}
    comparison = unequal(tmp_path, {"imp": (100, imp), "gmp": (200, {3: 0.85, 4: 0.87})})
    (row,) = comparison.rows
    cheap, dear = row.cost_ranking
    assert (cheap.label, cheap.front, cheap.against) == ("imp", True, None)
    assert (dear.label, dear.front, dear.against) == ("gmp", False, "imp")
    assert dear.difference is not None
    assert (dear.difference.n, dear.difference.mean) == (2, pytest.approx(-0.01))
    assert row.best == ("imp",)
    shown = comparison_markdown(comparison, at="equal-cost")
    assert "-1.00 ±0.00 (2)" in shown
    assert "over the seeds that both have" in shown


def test_methods_without_a_common_seed_are_not_ranked_and_the_table_says_so(tmp_path: Path) -> None:
    methods = {"a": (10, {0: 0.8}), "b": (20, {1: 0.9}), "c": (30, {0: 0.85, 1: 0.85})}
    comparison = unequal(tmp_path, methods)
    (row,) = comparison.rows
    a, b, c = row.cost_ranking
    assert (a.front, a.against, a.unpaired) == (True, None, ())
    assert (b.front, b.against, b.difference, b.unpaired) == (False, None, None, ("a",))
    # C is better than A on seed 0, and worse than B on seed 1.
    assert (c.front, c.against, c.unpaired) == (False, "b", ())
    assert row.best == ()
    assert "No common seed, not compared: b with a." in comparison_markdown(comparison, at="equal-cost")
    assert any("a and b have no common seed" in note for note in comparison.notes)


def test_the_best_is_better_than_each_other_method_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    methods = {
        "lucky": (10, {2: 0.9}),
        "good": (10, {0: 0.80, 1: 0.85, 2: 0.92}),
        "bad": (10, {0: 0.79, 1: 0.84, 2: 0.91}),
    }
    (row,) = unequal(tmp_path, methods).rows
    assert row.best == ("good",)
    assert {label: difference.n for label, difference in row.to_best.items()} == {"lucky": 1, "bad": 3}


def test_the_summary_compares_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    runs = [run(tmp_path / "i0", [priced(0, 1.0, 0.80, 100, 100), priced(1, 0.1, 0.70, 20, 120)])]
    runs += [run(tmp_path / "i1", [priced(0, 1.0, 0.90, 100, 100), priced(1, 0.1, 0.80, 20, 120)], seed=1)]
    runs += [run(tmp_path / "s1", [priced(0, 0.1, 0.85, 120, 120)], "swamp", 1)]
    # SWAMP has the easy seed alone: 0.85 is level with the mean dense network, and 5 points below that of its seed.
    reached, dense, imp = summary_sentences(compare(runs))
    assert reached.startswith("swamp reaches 85.00 %")
    assert dense == "That is 5.00 points below the dense network (imp, 85.00 %), over 1 common seed."
    assert imp == "It is 5.00 points above imp; one common seed cannot exclude chance."
    alone = [run(tmp_path / "s2", [priced(0, 0.1, 0.85, 120, 120)], "swamp", 2)]
    assert summary_sentences(compare([*runs[:2], *alone]))[1:] == [
        "It has no common seed with imp, so that the two are not compared."
    ]


def test_the_unit_says_that_a_dense_training_includes_its_ticket(tmp_path: Path) -> None:
    found = run(tmp_path / "run", [cycle(0, 1.0, 0.9)])
    said = "the cheapest one-particle cycle at density 1, its ticket included"
    assert all(said in cost_unit([found], parallel=parallel).meaning for parallel in (False, True))
