"""Options of any class hold what they say, or are refused by name before anything is compared with them."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from swamp.algorithms import Plan
from swamp.datasets.problem import DataOptions, TextOptions
from swamp.errors import SwampError
from swamp.fields import check_fields
from swamp.runs.config import RunConfig
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
        ({"many": 0.5}, "many must be a sequence, each item a number, got 0.5"),
        ({"many": (0.5, math.nan)}, "many must be a finite number, got nan"),
        ({"many": "0.5"}, "many must be a sequence"),
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
