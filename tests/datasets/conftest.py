"""All tests of tasks use a cache folder of their own, and one thread."""

from pathlib import Path

import pytest
import torch

from swamp.training.rng import Seed


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, never the user's."""
    monkeypatch.setenv("SWAMP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def seed() -> Seed:
    return Seed(7)
