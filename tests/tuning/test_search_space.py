"""What --search accepts, and how it refuses the rest."""

import re

import msgspec
import pytest

from swamp.errors import SwampError
from swamp.recipes import configuration
from swamp.runs.config import RunConfig
from swamp.tuning.search_space import SearchRange, parse_range, range_of

CONFIG = configuration("mnist1d-mlp")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("lr=0.01..1:log", SearchRange("training.lr", 0.01, 1.0, log=True)),
        ("training.lr=1e-2..1", SearchRange("training.lr", 0.01, 1.0)),
        ("learning_rate=0.1..0.2", SearchRange("training.lr", 0.1, 0.2)),
        ("swa-fraction=0.1..0.52:step=0.1", SearchRange("training.swa_fraction", 0.1, 0.5, step=0.1)),
        ("warmup=0.8..4.4:step=0.3", SearchRange("training.warmup", 0.8, 4.4, step=0.3)),
        ("particles=2..6", SearchRange("plan.particles", 2.0, 6.0, whole=True)),
        ("particles=2,4,8", SearchRange("plan.particles", choices=(2, 4, 8))),
        ("min-per-layer=0,1", SearchRange("plan.min_per_layer", choices=(0, 1))),
        ("prune_fraction=0.2, 0.4", SearchRange("plan.prune_fraction", choices=(0.2, 0.4))),
        ("nesterov=true,false", SearchRange("training.nesterov", choices=(True, False))),
        ("schedule=cosine,step", SearchRange("training.schedule", choices=("cosine", "step"))),
        ("schedule", SearchRange("training.schedule", choices=("cosine", "linear", "step", "constant"))),
        ("augment", SearchRange("data.augment", choices=(False, True))),
        ("lr", SearchRange("training.lr", 0.03, 0.9, log=True)),
    ],
)
def test_a_range_is_read_as_it_is_written(given, expected):
    found = parse_range(given, CONFIG)
    assert found == expected
    assert parse_range(str(found), CONFIG) == found
    assert msgspec.convert(msgspec.to_builtins(found), SearchRange) == found


def test_a_file_may_give_a_list_or_a_table():
    assert range_of("particles", [2, 4], CONFIG, "x") == SearchRange("plan.particles", choices=(2, 4))
    table = {"low": 0.01, "high": 1, "log": True}
    assert range_of("lr", table, CONFIG, "x") == SearchRange("training.lr", 0.01, 1.0, log=True)
    assert range_of("lr", True, CONFIG, "x") == parse_range("lr", CONFIG)
    with pytest.raises(SwampError, match=r"x: unknown key hgih; a range has low, high, log and step"):
        range_of("lr", {"low": 1, "hgih": 2}, CONFIG, "x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lrr=1..2", "unknown option 'lrr'. Did you mean lr"),
        ("lr=1..0.1", "the range is empty, as 1 is above 0.1. Write 0.1..1."),
        ("lr=", "has no value: write"),
        ("lr=,", "has no value: write"),
        ("lr=0.1", "has a single value. Set it: --lr 0.1"),
        ("lr=0.1..0.1", "has the single value 0.1. Set it: --lr 0.1"),
        ("lr=0.1,0.1", "has a value twice"),
        ("lr=0..1:log", "a logarithmic range begins above 0"),
        ("lr=-1..1", "lr must be above 0, got -1"),
        ("lr=a..b", "'a' is no number"),
        ("lr=0.1..inf", "inf must be a finite number"),
        ("lr=0.1..1:ln", "'ln' is neither log nor step=NUMBER"),
        ("lr=0.1..1:step=2", "step must lie between 0 and 0.9"),
        ("lr=0.1..1:log:step=0.1", "cannot be combined with log"),
        ("particles=1.5..2", "1.5 must be a whole number"),
        ("schedule=a..b", "cosine, linear, step, constant, which have no order"),
        ("schedule=cosine,liner", "'liner'"),
        ("nesterov=1,2", "its values are true and false"),
        ("score", "score has no default range"),
        ("epochs=1..4", "all trials have equal cost, from which epochs follow"),
        ("sparsity=0.5,0.9", "end with the same number of the same weights"),
        ("seed=0,1", "a seed is luck"),
        ("method=imp,swamp", "--methods imp swamp"),
        ("task=digits,mnist1d", "no longer solve the same problem"),
        ("validation=0.1,0.2", "no longer solve the same problem"),
        ("threads=1,2", "does not change the result"),
        ("device=cpu,cuda", "does not change the result"),
        ("on-divergence=stop,drop", "does not change a training"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_reason(given, message):
    with pytest.raises(SwampError, match=rf"^--search '{re.escape(given)}'.*{re.escape(message)}"):
        parse_range(given, CONFIG)


def test_default_ranges_lie_around_the_recipe_and_are_valid():
    for recipe in ("mnist1d-mlp", "digits-mlp", "movie-reviews-transformer"):
        config = configuration(recipe)
        for name in ("lr", "weight-decay", "batch-size", "warmup", "ticket-epochs", "particles", "update-interval"):
            found = parse_range(name, config)
            assert len(found.ends) > 1
        assert parse_range("lr", config).contains(config.training.lr)
        assert parse_range("particles", config).contains(config.plan.most_particles)


def test_a_value_lies_in_a_range_if_a_trial_may_have_it():
    stepped = SearchRange("training.swa_fraction", 0.1, 0.5, step=0.1)
    assert [stepped.contains(value) for value in (0.1, 0.3, 0.35, 0.6, "a")] == [True, True, False, False, False]
    assert not parse_range("particles=2,4", RunConfig()).contains(3)
