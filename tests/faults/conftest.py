"""The campaigns lie in the folder faults/; here are their short forms, which call the same functions."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))

from child import alone


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Processes are forked here."""
    with alone():
        yield
