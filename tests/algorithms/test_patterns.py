"""Every method prunes in patterns: N:M and whole channels, from the dense mask to the last cycle."""

from itertools import pairwise

import pytest
from torch import nn

import swamp
from swamp.algorithms import METHODS, Cycle, ensemble
from swamp.masks import Mask
from swamp.training import Seed, Task
from swamp.training.rng import isolated

from .conftest import COVERING, SHORT, TRAINING, run
from .test_bad_input import attempt

METHOD_NAMES = [name for name in COVERING if not METHODS[name].ensemble]


@pytest.fixture
def wide() -> nn.Module:
    """Layers of 6, 16 and 8 inputs: groups of 4 do not divide the first."""
    with isolated(Seed(7).at("init")):
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 3))


def require_groups(mask: Mask, m: int, kept: int) -> None:
    for name, tensor in mask.items():
        assert all((part.sum(1) == kept).all() for part in tensor.split(m, dim=1)), name


def require_whole_channels(mask: Mask) -> None:
    for name, tensor in mask.items():
        assert all(bool(row.all()) or not bool(row.any()) for row in tensor), name


def require_nested(record: list[Cycle], method: str) -> None:
    nested = METHODS[method].masks == "iterative" and not METHODS[method].pools
    assert not nested or all(after.mask.issubset(before.mask) for before, after in pairwise(record))


@pytest.mark.fast_cases(6)
@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_goes_to_two_of_four_one_weight_of_each_group_at_a_time(wide, task, method):
    record = run(wide, task, method, SHORT, particles=(2,), structure="2:4", exclude=("0.weight",), cycles=2)
    assert [cycle.mask.density for cycle in record] == [1, 0.75, 0.5]
    assert list(record[0].mask) == ["3.weight", "4.weight"]
    for kept, cycle in zip((4, 3, 2), record, strict=True):
        require_groups(cycle.mask, 4, kept)
        cycle.mask.require_zeros(cycle.weights)
    require_nested(record, method)


@pytest.mark.fast_cases(6)
@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_prunes_whole_channels_and_leaves_the_output_layer_dense(wide, task, method):
    record = run(wide, task, method, SHORT, particles=(2,), structure="channel", cycles=2)
    assert list(record[0].mask) == ["0.weight", "3.weight"]
    wanted = [round(0.2 ** (k / 2) * 224) for k in range(3)]
    for most, cycle in zip(wanted, record, strict=True):
        require_whole_channels(cycle.mask)
        # The widest channel has 16 weights.
        assert most - 16 < cycle.mask.nnz <= most
        cycle.mask.require_zeros(cycle.weights)
        assert bool((cycle.weights["4.weight"] != 0).all())
    require_nested(record, method)


@pytest.mark.parametrize("structure", ["2:4", "channel"])
def test_an_ensemble_s_members_keep_to_the_pattern(wide, task, structure):
    plan = swamp.Plan(method="imp-ensemble", particles=(2,), sparsity=0.5, structure=structure, exclude=("0.weight",))
    last = list(ensemble(lambda _: wide, task, plan, TRAINING))[-1]
    if structure == "2:4":
        require_groups(last.mask, 4, 2)
    else:
        require_whole_channels(last.mask)
    assert last.mask.density <= 0.5


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_prunings_too_small_for_a_channel_keep_the_mask_and_the_run_continues(wide, task, allocation):
    densities = (1.0, 0.99, 0.985, 0.98, 0.5)
    record = run(wide, task, "imp", structure="channel", densities=densities, allocation=allocation)
    kept = [cycle.mask.nnz for cycle in record]
    # 222 of 224 weights are wanted: one channel goes, of 6 weights or of 16; the next two prunings find room enough.
    assert kept[1] in (218, 208)
    assert kept[1] == kept[2] == kept[3]
    assert record[1].mask == record[3].mask
    assert 112 - 16 < kept[4] <= 112


def test_one_pruning_goes_to_the_pattern_at_once_and_densities_may_be_given(wide, task):
    for options in ({"cycles": 1}, {"densities": (1.0, 0.5)}):
        record = run(wide, task, "imp", structure="2:4", exclude=("0.weight",), **options)
        assert [cycle.mask.density for cycle in record] == [1, 0.5]
        require_groups(record[1].mask, 4, 2)


def test_a_pattern_sets_its_own_densities_whatever_the_sparsity_says():
    for sparsity in (0.0, 0.5, 0.95):
        plan = swamp.Plan(structure="1:4", sparsity=sparsity, prune_fraction=(0.9, 0.1), particles=(2,))
        assert plan.schedule().densities == (1, 0.75, 0.5, 0.25)
    assert swamp.Plan(method="swamp+", structure="1:4").schedule().particles == (1, 1, 4, 4)


def test_prune_takes_a_pattern_at_its_default_sparsity(wide, task):
    result = swamp.prune(
        wide, task, structure="2:4", exclude=("0.weight",), particles=2, training=TRAINING, barrier_threshold=1
    )
    assert result.sparsity == 0.5
    require_groups(result.mask, 4, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "2:4"}, r"'0.weight' has the shape \(16, 6\).*exclude=\('0.weight',\)"),
        ({"structure": "4:2"}, "structure 4:2 is not a valid n:m pattern"),
        ({"structure": "2:4", "allocation": "erk"}, "allocation 'erk' has no effect"),
        ({"structure": "2:4", "cycles": 3}, "2:4 allows at most 2 prunings"),
        ({"structure": "2:4", "densities": (1.0, 0.6)}, r"multiples of 1/4 .* got 0\.6"),
        (
            {"structure": "2:4", "exclude": ("0.*",), "min_per_layer": 13},
            "minimum of 13 per layer requires 13 weights of '4.weight'",
        ),
        ({"structure": "channel", "sparsity": 0.95}, "11 of 224 weights cannot be kept in whole channels"),
        ({"structure": "channel", "include": ("4.weight",)}, "nothing to prune.*the output layer stays dense"),
        ({"structure": "channels"}, "Did you mean channel"),
    ],
)
def test_a_pattern_that_cannot_be_had_is_refused_before_training(
    wide: nn.Module, task: Task, options: dict, message: str
) -> None:
    with pytest.raises(swamp.SwampError, match=message):
        attempt(wide, task, **options)
