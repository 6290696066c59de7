"""The value of one more particle: exact where the loss is quadratic, and measured on a run."""

import math
import shutil
from itertools import combinations, islice

import pytest
import torch

from swamp.analysis import ANALYSES, averaging_gain
from swamp.analysis.analysis_tasks import AnalysisSettings
from swamp.analysis.averaging_gain import MOST_SUBSETS, gains, predicted, sizes_of
from swamp.analysis.run_data import RunData

from .runs import records_of, run


def test_the_law_is_exact_for_a_quadratic_loss_over_all_subsets():
    generator = torch.Generator().manual_seed(0)
    count, width = 8, 5
    root = torch.randn(width, width, generator=generator, dtype=torch.float64)
    hessian, lowest = root @ root.T, torch.randn(width, generator=generator, dtype=torch.float64)
    particles = lowest + torch.randn(count, width, generator=generator, dtype=torch.float64)

    def loss_of(size: int) -> float:
        means = [particles[list(subset)].mean(0) - lowest for subset in combinations(range(count), size)]
        return float(torch.stack([0.5 * mean @ hessian @ mean for mean in means]).mean())

    # Subsets of the same particles, without replacement: the mean over all of them is exactly linear in 1 / n.
    measured = [loss_of(size) for size in (1, 2, 4, 8)]
    assert predicted(measured[0], measured[1], [1, 2, 4, 8]) == pytest.approx(measured, rel=1e-12)


@pytest.mark.parametrize(
    ("count", "sizes"), [(2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_the_sizes_of_the_means(count, sizes):
    assert sizes_of(count) == sizes


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    path = run(tmp_path_factory.mktemp("averaging") / "run", particles=9, densities=(1.0, 0.5))
    return path, list(records_of(RunData.open(path), ANALYSES["averaging"], AnalysisSettings(examples=200)))


def test_a_run_has_a_record_for_each_cycle_and_one_over_all(analysed):
    _, records = analysed
    assert [record["key"] for record in records] == ["averaging/cycle-00", "averaging/cycle-01", "averaging/all"]
    for record in records[:-1]:
        assert record["sizes"] == [1, 2, 4, 8, 9]
        for quantity in ("loss", "error"):
            values = record[quantity]
            assert values["predicted"][:2] == pytest.approx(values["mean"][:2])
            assert values["spread"][-1] == 0
            assert len(gains(record, quantity)) == 3
    assert -1 <= records[-1]["loss"] <= 1


def test_its_ends_are_the_particles_and_the_mean_that_the_hull_has(analysed):
    path, records = analysed
    hull = next(iter(records_of(RunData.open(path), ANALYSES["hull"], AnalysisSettings(examples=200))))
    singles = [point["loss"] for point in hull["extreme_points"]]
    assert records[0]["loss"]["mean"][0] == pytest.approx(sum(singles) / 9)
    assert records[0]["loss"]["mean"][-1] == pytest.approx(hull["mean"]["loss"])


def test_of_many_subsets_some_are_drawn_always_the_same(analysed):
    path, records = analysed
    drawn = averaging_gain._subsets(9, 4, averaging_gain.Seed(0))
    assert len(drawn) == len(set(drawn)) == MOST_SUBSETS
    assert drawn == averaging_gain._subsets(9, 4, averaging_gain.Seed(0))
    again = averaging_gain.averaging_of_cycle(RunData.open(path), 1, AnalysisSettings(examples=200))
    assert again["loss"] == records[1]["loss"]


def test_a_loss_that_is_not_finite_counts_alike_in_one_session_and_in_two(analysed, tmp_path, monkeypatch):
    path, records = analysed
    means = ([8.0, 6.0, 5.5, 4.0, math.nan], [8.0, 4.0, 1.0, 0.5, 0.25])
    laws = ([8.0, 6.0, 5.0, 4.5, 4.25], [8.0, 4.0, 2.0, 1.0, 0.5])
    monkeypatch.setattr(
        averaging_gain,
        "averaging_of_cycle",
        lambda _, index, __: {**records[index], "loss": {"mean": means[index], "predicted": laws[index]}},
    )
    settings, found = AnalysisSettings(examples=200), []
    for name, sessions in {"one": [3], "two": [2, 3]}.items():
        shutil.copytree(path, tmp_path / name, ignore=shutil.ignore_patterns("analysis.jsonl"))
        for count in sessions:
            opened = RunData.open(tmp_path / name)
            last = [*islice(records_of(opened, ANALYSES["averaging"], settings), count)][-1]
        found.append(last)
    assert [record["key"] for record in found] == ["averaging/all"] * 2
    # The gains predicted and measured are (1, 0.5), (0.5, 1.5), (2, 3), (1, 0.5), (0.5, 0.25).
    assert [record["loss"] for record in found] == [pytest.approx(0.540738, rel=1e-6)] * 2
