"""Configurations as files."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp.algorithms import METHODS, Plan
from swamp.errors import SwampError
from swamp.recipes import DEFAULT, RECIPES, recipe_named
from swamp.runs.config import RunConfig
from swamp.training import Training


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_survives_the_way_through_json(name):
    config = RECIPES[name]()
    read_back = RunConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert read_back == config
    assert read_back.digest() == config.digest()
    assert config.recipe == name


@given(
    st.builds(
        Plan,
        method=st.sampled_from(sorted(METHODS)),
        sparsity=st.floats(0, 0.99),
        particles=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
        prune_fraction=st.floats(0.05, 0.9).map(lambda a: (a,)),
        seed=st.integers(0, 2**40),
        # Text without zero bytes, which a configuration refuses.
        exclude=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=5), max_size=2).map(
            tuple
        ),
    ),
    st.builds(Training, epochs=st.integers(1, 99), lr=st.floats(1e-6, 10), clip=st.floats(0, 10)),
)
def test_any_configuration_survives_the_way_through_json(plan, training):
    config = RunConfig(plan=plan, training=training)
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"lr": "fast"}}, r"Expected `float`, got `str` - at `\$.training.lr`"),
        ({"training": {"lr": -1}}, "lr must be above 0"),
        ({"training": {"learning_rate": 1}}, "unknown field 'training.learning_rate'"),
        ({"training.lr": 1}, 'unknown field "training.lr" in the outermost object. Did you mean "lr" in "training"'),
        ({"plan": {"tail": 1}}, 'unknown field "tail" in "plan". Did you mean "swa_fraction" in "training"'),
        ({"data": {"text": {"task": "x"}}}, 'in "data.text". Did you mean "task" in the outermost object'),
        ({"plann": {}}, "unknown field 'plann'. Did you mean plan"),
        ({"plan": {"seed": -1}}, "seed must be 0 or more"),
        ({"plan": {"particles": [0]}}, "particles must be 1 or more"),
        ({"plan": {"method": "swimp"}}, "unknown method"),
        ({"keep_checkpoints": "all"}, "Invalid enum value 'all'"),
        ({"threads": -1}, "threads must be from 0 to 1024"),
        ({"threads": 10_000}, "from 0 to 1024, got 10000"),
        ({"snapshot_seconds": 0}, "snapshot_seconds must be above 0"),
        ([], "Expected `object`"),
        (7, "Expected `object`"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_naming_the_field(values, message):
    with pytest.raises(SwampError, match=message):
        RunConfig.from_json(values)


def test_a_file_that_is_no_configuration_is_refused(tmp_path):
    with pytest.raises(SwampError, match="cannot read"):
        RunConfig.load(tmp_path / "absent.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SwampError, match="is not JSON"):
        RunConfig.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(SwampError, match="is not JSON"):
        RunConfig.load(tmp_path / "config.json")


def test_a_runs_name_tells_it_from_others():
    base = RECIPES[DEFAULT]()
    others = [
        replace(base, plan=replace(base.plan, seed=1)),
        replace(base, plan=replace(base.plan, method="imp")),
        replace(base, training=replace(base.training, lr=0.123)),
    ]
    assert len({config.name() for config in (base, *others)}) == 4
    assert base.name().startswith("mnist1d-mlp-swamp-4-seed0-")
    assert replace(base, keep_checkpoints="means").name() == base.name()


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(SwampError, match="Did you mean mnist1d-mlp"):
        recipe_named("mnist1d-mpl")
