"""A finished run that all tests read, and the double well."""

from pathlib import Path

import pytest

from swamp.training import Task

from .known_losses import double_well_task
from .runs import go, tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with three particles per cycle, and their trajectories."""
    path = tmp_path_factory.mktemp("run") / "run"
    go(tiny(3, trajectory_every=4), path)
    return path


@pytest.fixture
def well() -> Task:
    return double_well_task()
