"""The short form of `make zoo`: tasks of every kind with torch alone, and some networks of transformers."""

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "zoo"))

import plain
import run

FAST = ("multi-task",)
HUB = ("BERT", "GPT-2", "Mixtral", "T5")


@pytest.mark.parametrize(
    "name", [pytest.param(e.name, marks=() if e.name in FAST else pytest.mark.slow) for e in plain.ENTRIES]
)
def test_a_task_of_another_kind_is_pruned_resumed_held_and_loaded(name: str, tmp_path: Path):
    entry = next(entry for entry in plain.ENTRIES if entry.name == name)
    assert run.tried(entry, tmp_path).metric


@pytest.mark.slow
@pytest.mark.parametrize("name", HUB)
@pytest.mark.filterwarnings("ignore")
def test_a_network_of_transformers_is_pruned_resumed_held_and_loaded(name: str, tmp_path: Path):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    entry = next(entry for entry in run.ENTRIES if entry.name == name)
    assert run.tried(entry, tmp_path).metric


def test_the_page_lists_every_entry():
    page = (Path(__file__).parent.parent / "docs" / "reference" / "zoo.md").read_text()
    assert [entry.name for entry in run.ENTRIES if f"| {entry.name} |" not in page] == []
    assert "Error" not in page
