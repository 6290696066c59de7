"""Statistics of masks: counted by hand on masks of a few weights, and independently on a run."""

import itertools
import shutil

import pytest
import torch
from scipy import stats
from torch import nn

from swamp.analysis import ANALYSES, compare_masks
from swamp.analysis.analysis_tasks import AnalysisSettings, read_analysis
from swamp.analysis.mask_overlap import (
    compare_two_masks,
    dead_units,
    equal_signs,
    expected_overlap,
    layer_densities,
    magnitude_correlation,
    mask_of_cycle,
    overlap,
    transposed_weights,
)
from swamp.analysis.mask_training import MaskSource, shared_densities
from swamp.analysis.run_data import RunData
from swamp.errors import MaskError, SwampError
from swamp.masks import Mask
from swamp.runs.read import read_mask, read_weights

from .runs import blind, records_of, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("masks") / "run", 2)


def test_records_written_by_another_process_are_kept(finished):
    run_data = RunData.open(finished)
    (finished / "analysis.jsonl").unlink(missing_ok=True)
    tasks = records_of(run_data, ANALYSES["masks"], AnalysisSettings())
    first = next(tasks)
    # Between two tasks of this analysis, another process adds records.
    others = list(records_of(RunData.open(finished), ANALYSES["barriers"], AnalysisSettings(points=2)))
    rest = list(tasks)
    assert {record["key"] for record in read_analysis(finished)} == {r["key"] for r in [first, *rest, *others]}


def mask(**rows) -> Mask:
    return Mask({name: torch.tensor(values, dtype=torch.bool) for name, values in rows.items()})


def test_layers_and_their_dead_units_are_counted():
    one = mask(a=[[1, 0, 0], [0, 0, 0]], b=[[1, 1]], bias=[1, 0, 0])
    assert layer_densities(one)["a"] == {"density": 1 / 6, "nnz": 1, "size": 6}
    assert dead_units(one) == {
        "a": {"outputs": 1, "inputs": 2},
        "b": {"outputs": 0, "inputs": 0},
        "bias": {"outputs": 2, "inputs": None},
    }


def test_a_kernel_is_active_if_one_of_its_weights_is():
    tensor = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    tensor[0, 0, 1, 1] = tensor[0, 1, 0, 0] = True
    assert dead_units(Mask({"conv.weight": tensor}))["conv.weight"] == {"outputs": 1, "inputs": 1}


def test_a_transposed_convolution_has_its_inputs_first():
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 1), nn.Conv1d(3, 2, 1))
    names = transposed_weights(model)
    assert names == {"0.weight"}
    one = Mask({"0.weight": torch.tensor([[[1], [1], [0]], [[0], [0], [0]]], dtype=torch.bool)})
    assert dead_units(one, names)["0.weight"] == {"outputs": 1, "inputs": 1}
    two = Mask({"0.weight": torch.tensor([[[1], [0], [0]], [[1], [0], [0]]], dtype=torch.bool)})
    assert dead_units(two, names)["0.weight"] == {"outputs": 2, "inputs": 0}


def test_signs_and_ranks_are_those_of_active_weights():
    alive = mask(a=[[1, 1, 1, 1, 0, 0]])
    ticket = {"a": torch.tensor([[1.0, -2.0, 3.0, 0.0, -9.0, 0.0]])}
    weights = {"a": torch.tensor([[2.0, -1.0, -4.0, 0.5, 0.0, 0.0]])}
    assert equal_signs(alive, weights, ticket) == 2 / 4
    # |ticket| 1 2 3 0 has ranks 2 3 4 1, |weights| 2 1 4 .5 has 3 2 4 1: 1 - 6 * 2 / (4 * 15).
    assert magnitude_correlation(alive, ticket, weights) == pytest.approx(0.8)


def test_a_complex_weight_has_the_signs_of_both_parts():
    alive = mask(a=[1, 1, 1, 0])
    one = {"a": torch.tensor([1 + 2j, 1 - 1j, 3 + 0j, 0j])}
    other = {"a": torch.tensor([2 + 1j, 1 + 1j, 1 + 0j, 1j])}
    assert equal_signs(alive, one, other) == 2 / 3


def test_expected_overlap_is_the_average_over_random_masks():
    one, other = mask(a=[1, 1, 0, 0, 0, 0], b=[1, 1, 1, 0]), mask(a=[0, 0, 1, 1, 1, 0], b=[0, 0, 1, 1])
    # Expected in both: 2 * 3 / 6 + 3 * 2 / 4 = 2.5, of 5 + 5 - 2.5 in either.
    assert expected_overlap(one, other) == pytest.approx(2.5 / 7.5)
    chosen = (
        [set(c) for c in itertools.combinations(range(6), 2)],
        [set(c) for c in itertools.combinations(range(4), 3)],
    )
    both = [len(a & {2, 3, 4}) + len(b & {2, 3}) for a in chosen[0] for b in chosen[1]]
    assert sum(both) / len(both) == pytest.approx(2.5)
    # To first order in 1/n: the mean of the index itself is 0.349 here, with ten weights.
    assert sum(n / (10 - n) for n in both) / len(both) == pytest.approx(1 / 3, abs=0.03)


def test_overlap_is_compared_with_its_expectation():
    one, other = mask(a=[1, 1, 0, 0], b=[1, 0]), mask(a=[1, 0, 1, 0], b=[1, 0])
    found = overlap(one, other)
    assert found["jaccard"] == 2 / 4
    assert found["expected"] == pytest.approx(1.5 / 4.5)
    assert found["above_chance"] == pytest.approx((1 / 2 - 1 / 3) / (2 / 3))
    assert overlap(one, one)["above_chance"] == 1
    dense = mask(a=[1, 1, 1, 1])
    assert overlap(dense, dense)["above_chance"] != overlap(dense, dense)["above_chance"]
    with pytest.raises(MaskError, match="different models"):
        overlap(one, dense)


def test_the_record_of_a_cycle_agrees_with_independent_counts(finished):
    run_data = blind(RunData.open(finished))
    first, second = mask_of_cycle(run_data, 0), mask_of_cycle(run_data, 1)
    assert (first["before"], first["kept_of_before"], first["signs"]["before"]) == (None, None, None)
    assert sum(layer["nnz"] for layer in first["layers"].values()) == run_data.cycle(0).mask.prunable
    before, after = run_data.cycle(0), run_data.cycle(1)
    assert second["before"] == second["kept_of_before"] == pytest.approx(0.5)
    ticket, old, new = (
        torch.cat([weights[name][after.mask[name]] for name in after.mask])
        for weights in (run_data.ticket.weights, before.weights, after.weights)
    )
    assert second["signs"]["ticket"] == pytest.approx(float((ticket * new > 0).double().mean()))
    assert second["signs"]["before"] == pytest.approx(float((old * new > 0).double().mean()))
    expected = stats.spearmanr(ticket.abs(), new.abs()).statistic
    assert second["magnitude_rank"] == pytest.approx(expected)


def test_kept_of_before_is_right_for_masks_that_regrow(tmp_path):
    # Random masks are not nested, and have no ticket.
    path = run(tmp_path / "run", method="random", densities=(0.5, 0.25))
    line = mask_of_cycle(RunData.open(path), 1)
    old, new = (RunData.open(path).cycle(index).mask for index in (0, 1))
    both = sum(int((old[name] & new[name]).sum()) for name in old)
    assert line["kept_of_before"] == pytest.approx(both / old.nnz)
    assert line["before"] == pytest.approx(both / (old.nnz + new.nnz - both))
    assert line["signs"]["ticket"] is None
    assert line["magnitude_rank"] is None


def test_tasks_are_computed_once(finished, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    one = list(records_of(RunData.open(path), ANALYSES["masks"], AnalysisSettings()))
    assert [line["key"] for line in one] == [f"masks/cycle-0{n}" for n in range(3)]
    written = (path / "analysis.jsonl").read_bytes()
    (path / "cycle-01" / "mean.safetensors").unlink()  # not needed by tasks that are computed
    assert list(records_of(RunData.open(path), ANALYSES["masks"], AnalysisSettings())) == one
    assert (path / "analysis.jsonl").read_bytes() == written


def test_runs_are_compared_at_the_sparsities_they_share(finished, tmp_path):
    here, there = MaskSource.open(finished), MaskSource.open(run(tmp_path / "other", method="imp", seed=1))
    sides = {("swamp", 0): here, ("imp", 1): there}
    found = list(compare_masks(sides, shared_densities({0: {"swamp": here, "imp": there}})))
    assert [(line["a"], line["b"], line["seeds"], line["cycles"]) for line in found] == [
        ("swamp", "imp", [0, 1], [1, 1]),
        ("swamp", "imp", [0, 1], [2, 2]),
    ]
    for line in found:
        assert 0 < line["expected"] < line["jaccard"] + 0.2 < 1.2
    one, other = (read_mask(side.directory, 2) for side in (here, there))
    mine, theirs = (read_weights(side.directory, 2) for side in (here, there))
    layer = "output.weight"
    both = one[layer] & other[layer]
    assert found[1]["layers"][layer]["jaccard"] == pytest.approx(
        float(both.sum()) / float((one[layer] | other[layer]).sum())
    )
    same = (mine[layer][both] * theirs[layer][both] > 0).double().mean()
    assert found[1]["layers"][layer]["signs"] == pytest.approx(float(same))
    itself = compare_two_masks(here, here, [here.records[1]["density"]["prunable"]])
    assert (itself[0]["jaccard"], itself[0]["signs"]) == (1, 1)
    lonely = MaskSource.open(run(tmp_path / "lonely", method="imp", sparsity=0.3))
    with pytest.raises(SwampError, match=r"no finished cycles of equal sparsity above 0.*same schedule"):
        shared_densities({0: {"swamp": here, "imp": lonely}})
