"""Altered files of every kind: they load, or are refused by name; and bombs take no memory."""

import random
import resource
from pathlib import Path

import pytest

from loaders import BOMBS, altered, loaders, tried
from sandbox import limit_memory

LOADERS = loaders()
CASES = 40


@pytest.fixture
def little_memory():
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit_memory(1.0)
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("little_memory")
@pytest.mark.fast_cases(8)
@pytest.mark.parametrize("name", list(LOADERS))
def test_an_altered_file_loads_or_is_refused(name: str, tmp_path: Path):
    loader = LOADERS[name]
    assert tried(loader, loader.whole, tmp_path) == "loaded"
    for number in range(max(2, CASES // loader.cost)):
        data = altered(loader, random.Random(f"{name} {number}"))
        outcome = tried(loader, data, tmp_path)
        assert outcome in ("loaded", "refused"), f"case {number}: {data[:300]!r}: {outcome}"


@pytest.mark.usefixtures("little_memory")
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", list(BOMBS))
def test_a_bomb_takes_no_memory(name: str, tmp_path: Path):
    """At most 1 GiB more than there was: the gzip bomb asks for 4, the mask for 1,024."""
    for what, data in BOMBS[name]().items():
        assert tried(LOADERS[name], data, tmp_path) == "refused", what
