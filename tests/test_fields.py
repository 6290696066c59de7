"""Options of any class hold what they say, or are refused by name before anything is compared with them."""

import importlib
import math
import pkgutil
from dataclasses import dataclass, is_dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import swamp
from swamp.algorithms import Plan
from swamp.datasets.problem import DataOptions, TextOptions
from swamp.errors import SwampError
from swamp.fields import check_fields
from swamp.masks.schedule import Count
from swamp.recipes import configuration
from swamp.runs.config import RunConfig
from swamp.runs.study import Study
from swamp.training import Training
from swamp.training.mask_updates import Dynamic


@dataclass(frozen=True)
class Inner:
    """Options inside options."""

    count: int = 0


@dataclass(frozen=True)
class Options:
    """One field of each kind."""

    count: int = 1
    share: float = 0.5
    name: str = "x"
    on: bool = False
    way: Literal["here", "there"] = "here"
    many: tuple[float, ...] = ()
    perhaps: str | None = None
    inner: Inner = Inner()


@pytest.mark.parametrize(
    "right",
    [
        {"count": np.int64(3), "share": np.float32(0.5)},
        {"share": 1, "many": [1, 0.5]},
        {"count": 2**63 - 1, "perhaps": "x"},
        {"count": -(2**63), "perhaps": None, "on": True},
    ],
)
def test_values_of_the_declared_types_are_accepted(right):
    check_fields(Options(**right))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 1.5}, "count must be a whole number, got 1.5"),
        ({"count": True}, "count must be a whole number, got True"),
        ({"count": 10**30}, "count must be a whole number of at most 64 bits"),
        ({"share": math.nan}, "share must be a finite number, got nan"),
        ({"share": -math.inf}, "share must be a finite number, got -inf"),
        ({"share": 10**400}, "share must be a number in the range of float32, got 1000.*[.][.][.]"),
        ({"share": -1.7e308}, "share must be a number in the range of float32, got -1.7e[+]308"),
        ({"share": "half"}, "share must be a number, got 'half'"),
        ({"name": None}, "name must be text, got None"),
        ({"name": "a\0b"}, "name must be text without zero bytes"),
        ({"on": "yes"}, "on must be true or false, got 'yes'"),
        ({"way": "ther"}, "unknown way 'ther'. Did you mean there"),
        ({"many": {0.5}}, "many must be a number, or a sequence of such values, got a set"),
        ({"many": None}, "many must be a number, or a sequence of such values, got None"),
        ({"many": (0.5, math.nan)}, "many must be a finite number, got nan"),
        ({"many": math.nan}, "many must be a finite number, got nan"),
        ({"many": "0.5"}, "many must be a number, got '0.5'. Write many=0.5."),
        ({"perhaps": 3}, "perhaps must be text, got 3"),
        ({"inner": {"count": 1}}, "inner must be a Inner"),
    ],
)
def test_what_does_not_is_named_with_what_was_given(wrong, message):
    with pytest.raises(SwampError, match=message):
        check_fields(Options(**wrong))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Training, {"weight_decay": math.nan}),
        (Training, {"clip": []}),
        (Plan, {"barrier_threshold": math.nan}),
        (Plan, {"exclude": True}),
        (Plan, {"prune_output_layer": "text"}),
        (Dynamic, {"update_interval": "often"}),
        (DataOptions, {"examples": 10**30}),
        (TextOptions, {"length": None}),
        (RunConfig, {"heartbeat_seconds": math.inf}),
        (RunConfig, {"data": {}}),
    ],
)
def test_every_class_of_options_is_checked(kind, wrong):
    with pytest.raises(SwampError, match=next(iter(wrong))):
        kind(**wrong)


def checked_classes() -> list[type]:
    """Every class of the package whose fields are checked."""
    found: dict[str, type] = {}
    for _, name, _ in pkgutil.walk_packages(swamp.__path__, "swamp."):
        if name.endswith("__main__") or name.startswith("swamp.integrations.") or name.endswith("_adapter"):
            continue
        for kind in vars(importlib.import_module(name)).values():
            checks = getattr(getattr(kind, "__post_init__", None), "__code__", None)
            if isinstance(kind, type) and is_dataclass(kind) and checks and "check_fields" in checks.co_names:
                found[kind.__qualname__] = kind
    return [*found.values()]


SEVERAL = [
    (kind, name, get_args(hint)[0])
    for kind in checked_classes()
    for name, hint in get_type_hints(kind).items()
    if get_origin(hint) is tuple
]
ITEMS = {
    int: st.integers(-1, 8),
    float: st.one_of(st.floats(), st.integers(0, 2), st.floats(0, 1)),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    Count: st.one_of(st.integers(-1, 8), st.just("auto")),
}


def outcome(make) -> object:
    """What is made, or the message of the error."""
    try:
        return make()
    except SwampError as error:
        return str(error)


def test_the_fields_of_several_values_are_found():
    names = {(kind.__name__, name) for kind, name, _ in SEVERAL}
    assert {("Plan", "prune_fraction"), ("Scope", "exclude"), ("TextOptions", "columns")} <= names
    assert ("CompareOptions", "sparsities") in names


@pytest.mark.parametrize(
    ("kind", "name", "item"), SEVERAL, ids=[f"{kind.__name__}.{name}" for kind, name, _ in SEVERAL]
)
@given(data=st.data())
def test_a_single_value_of_any_field_of_several_means_the_same_as_a_tuple_of_it(kind, name, item, data):
    value = data.draw(ITEMS[item])
    one, several, listed = (outcome(lambda given=given: kind(**{name: given})) for given in (value, (value,), [value]))
    assert one == several == listed
    if not isinstance(one, str):
        assert type(getattr(one, name)) is tuple
        assert hash(one) == hash(several) == hash(listed)


@given(fraction=st.floats(0.01, 0.99), pattern=st.text("abc.*", min_size=1))
def test_a_single_value_in_a_file_means_the_same_as_a_list_of_it(fraction, pattern):
    made = []
    for several in (False, True):
        values = RunConfig().to_json()
        values["plan"] |= {"prune_fraction": [fraction] if several else fraction, "particles": [3] if several else 3}
        values["data"]["text"]["columns"] = [pattern] if several else pattern
        made.append(outcome(lambda values=values: RunConfig.from_json(values)))
    assert made[0] == made[1]
    assert isinstance(made[0], RunConfig)


def test_a_single_value_in_a_study_means_the_same_as_a_list_of_it():
    values = {
        several: {
            "settings": {"prune_fraction": [0.5] if several else 0.5, "exclude": ["head.*"] if several else "head.*"},
            "grid": {"seed": [0, 1]},
            "compare": {"sparsities": [0.5] if several else 0.5},
        }
        for several in (False, True)
    }
    one, other = (Study.from_toml(values[several], "x") for several in (False, True))
    assert one.compare == other.compare
    assert one.configurations(configuration, "x") == other.configurations(configuration, "x")
