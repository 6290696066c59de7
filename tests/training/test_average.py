import itertools

import pytest
import torch

from swamp.errors import SwampError
from swamp.training import RunningMean
from swamp.training.average import interpolate, mean


def states(count: int, dtype: torch.dtype = torch.float64) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(50, generator=generator, dtype=dtype)} for _ in range(count)]


def test_mean_is_the_sum_over_the_count():
    given = states(5)
    assert torch.allclose(mean(given)["w"], sum(s["w"] for s in given) / 5, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_mean_of_one_state_is_that_state_bit_for_bit(dtype: torch.dtype, same):
    (only,) = states(1, dtype)
    assert same(mean([only]), only)


def test_order_changes_the_mean_by_rounding_only():
    given = states(4, torch.float32)
    means = torch.stack([mean(order)["w"] for order in itertools.permutations(given)])
    assert float((means - means[0]).abs().max()) < 4 * torch.finfo(torch.float32).eps


def test_short_floats_are_summed_in_float32_and_cast_once():
    # In bfloat16 the steps near 256 are 2: 256 -> 257 rounds to 256 -> 256.67 rounds to 256; the mean is 257.33.
    given = [{"w": torch.tensor([value], dtype=torch.bfloat16)} for value in (256, 258, 258)]
    running = RunningMean()
    for state in given:
        running.add(state)
    assert running.partial()["w"].dtype == torch.float32
    assert running.mean()["w"].dtype == torch.bfloat16
    assert float(running.mean()["w"]) == 258


def test_zeros_that_all_states_share_stay_exactly_zero():
    given = states(7, torch.float32)
    for state in given:
        state["w"][::2] = 0
    average = mean(given)["w"]
    assert average[::2].count_nonzero() == 0
    assert average[1::2].count_nonzero() == 25


def test_integers_are_not_averaged():
    average = mean([{"n": torch.tensor(value)} for value in (10, 20, 33)])
    assert torch.equal(average["n"], torch.tensor(33))


def test_a_continued_mean_has_the_same_bits(same):
    given = states(6, torch.bfloat16)
    whole = RunningMean()
    for state in given:
        whole.add(state)
    for stop in range(7):
        begun = RunningMean()
        for state in given[:stop]:
            begun.add(state)
        resumed = RunningMean(begun.partial(), begun.count, like=given[0])
        for state in given[stop:]:
            resumed.add(state)
        assert same(resumed.mean(), whole.mean())


def test_the_mean_does_not_share_memory_with_what_was_added():
    state = {"w": torch.ones(2), "n": torch.tensor(1)}
    running = RunningMean()
    running.add(state)
    first, part = running.mean(), running.partial()
    for tensors in (state, first, part):
        tensors["w"].zero_()
        tensors["n"].zero_()
    assert (running.mean()["w"].tolist(), int(running.mean()["n"])) == ([1, 1], 1)


def test_states_of_different_models_are_refused():
    for other in ({"v": torch.ones(2)}, {"w": torch.ones(3)}, {"w": torch.ones(2), "v": torch.ones(2)}):
        with pytest.raises(SwampError, match="different models"):
            mean([{"w": torch.ones(2)}, other])
    with pytest.raises(SwampError, match="add one first"):
        mean([])


def test_interpolation_is_exact_at_the_ends_and_straight_between(same):
    a = {"w": torch.tensor([1e-20, 3.0]), "n": torch.tensor(1)}
    b = {"w": torch.tensor([1.0, 1e20]), "n": torch.tensor(9)}
    assert same(interpolate(a, b, 0), a)
    assert same(interpolate(a, b, 1), b)
    quarter = interpolate(
        {"w": torch.tensor([0.0, 8.0]), "n": a["n"]}, {"w": torch.tensor([4.0, 0.0]), "n": b["n"]}, 0.25
    )
    assert quarter["w"].tolist() == [1, 6]
    assert int(quarter["n"]) == 1


def test_a_moving_average_has_a_smaller_decay_in_the_first_states():
    running = RunningMean(decay=0.25)
    for value in (1.0, 12.0, 0.0, 8.0):
        running.add({"w": torch.tensor([value], dtype=torch.float64)})
    # 2/11 of 1 and 9/11 of 12 after the second; then 3/12 is the decay itself, and 4/13 more than that.
    second = 2 / 11 + 12 * 9 / 11
    assert float(running.mean()["w"]) == pytest.approx((second * 0.25) * 0.25 + 8 * 0.75, rel=1e-15)


def test_a_moving_average_of_short_floats_moves_by_less_than_their_steps():
    running = RunningMean(decay=0.99)
    for value in [256.0] + 40 * [258.0]:
        running.add({"w": torch.tensor([value], dtype=torch.bfloat16), "n": torch.tensor(int(value))})
    # By steps of less than 1 bfloat16 would stay at 256.
    assert float(running.partial()["w"]) > 257.9
    assert (float(running.mean()["w"]), int(running.mean()["n"])) == (258, 258)


def test_means_that_go_on_from_one_partial_mean_leave_it_as_it_was():
    earlier = RunningMean()
    earlier.add({"w": torch.tensor([2.0])})
    partial = earlier.partial()
    for _ in range(2):
        later = RunningMean(partial, earlier.count)
        later.add({"w": torch.tensor([4.0])})
        assert later.mean() == {"w": torch.tensor([3.0])}
    assert partial["w"].tolist() == [2.0]
