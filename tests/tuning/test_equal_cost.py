"""All trials of a method cost the same."""

from dataclasses import replace

import pytest

from swamp.errors import SwampError
from swamp.recipes import configuration
from swamp.runs.budget import COST_TOLERANCE, at_equal_cost, cost_of
from swamp.runs.study import with_fields

from .tunings import tiny_tuning

BASE = configuration("mnist1d-mlp")


def test_the_cost_is_the_epochs_of_all_particles_and_of_the_ticket():
    # 0.4 of the rest in each of six prunings: seven cycles of four particles of 20 epochs, after 2 for the ticket.
    assert cost_of(BASE) == 7 * 4 * 20 + 2
    assert cost_of(with_fields(BASE, {"plan.method": "imp"})) == 7 * 20 + 2
    assert cost_of(with_fields(BASE, {"plan.method": "imp-ensemble"})) == 4 * (7 * 20 + 2)
    assert cost_of(with_fields(BASE, {"plan.method": "imp-long"})) == 7 * 4 * 20 + 2
    assert cost_of(with_fields(BASE, {"plan.method": "imp-sam"})) == 2 * 7 * 20 + 2
    assert cost_of(with_fields(BASE, {"plan.method": "random"})) == 20


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"training.lr": 0.7}, 20),
        ({"plan.particles": 8}, 10),
        ({"plan.particles": 1}, 80),
        ({"plan.cycles": 13}, 10),
        ({"plan.prune_fraction": 0.6}, 28),
        ({"training.sam": 0.05}, 10),
        ({"plan.ticket_epochs": 16}, 20),
    ],
)
def test_what_costs_more_trains_for_fewer_epochs(changes, epochs):
    found = at_equal_cost(with_fields(BASE, changes), cost_of(BASE))
    assert found.training.epochs == epochs
    assert abs(cost_of(found) / cost_of(BASE) - 1) <= COST_TOLERANCE


def test_a_cost_that_whole_epochs_do_not_reach_is_refused():
    config = configuration("digits-mlp")
    three = with_fields(config, {"plan.particles": 3})
    with pytest.raises(SwampError, match="with 3 epochs, the nearest whole number, it would cost 12 % more"):
        at_equal_cost(three, cost_of(config))
    with pytest.raises(SwampError, match="with 1 epoch, "):
        at_equal_cost(with_fields(config, {"plan.particles": 32}), cost_of(config))


def test_a_trial_trains_at_the_cost_of_the_recipe_and_its_best_configuration_too():
    tuning = tiny_tuning("particles=1,2,4")
    cost = cost_of(tuning.base)
    for particles, epochs in ((1, 8), (2, 4), (4, 2)):
        for config in (tuning.trial("swamp", {"particles": particles}), tuning.best("swamp", {"particles": particles})):
            assert (config.plan.particles, config.training.epochs) == ((particles,), epochs)
            assert cost_of(config) == cost


def test_a_choice_off_the_budget_is_refused_before_any_work():
    with pytest.raises(SwampError, match=r"--search 'particles=2,3': swamp with particles 3: with 3 epochs"):
        tiny_tuning("particles=2,3")


def test_a_trial_stops_where_it_diverges_and_the_best_configuration_does_not():
    tuning = tiny_tuning()
    assert tuning.trial("swamp", {"lr": 0.2}).plan.on_divergence == "stop"
    found = tuning.best("swamp", {"lr": 0.2})
    assert found == replace(tuning.base, training=replace(tuning.base.training, lr=0.2))
    assert found.test_data


def test_each_method_searches_the_options_that_it_uses():
    tuning = tiny_tuning("lr", "swa-lr", "particles=1,2", methods=("imp", "swamp"))
    assert [one.option for one in tuning.ranges_of("imp")] == ["lr"]
    assert [one.option for one in tuning.ranges_of("swamp")] == ["lr", "swa-lr", "particles"]
    with pytest.raises(SwampError, match=r"imp uses none of the searched options .particles: imp trains one particle"):
        tiny_tuning("particles=1,2", methods=("imp",))
    with pytest.raises(SwampError, match=r"--search 'particles=1,2': it has no effect: imp trains one particle"):
        tiny_tuning("lr", "particles=1,2", methods=("imp",))


def test_the_first_trial_has_the_values_of_the_recipe_if_the_ranges_hold_them():
    assert tiny_tuning("lr=0.01..1", "particles=1,2").first("swamp") == {"lr": 0.1, "particles": 2}
    assert tiny_tuning("lr=0.2..1").first("swamp") is None
