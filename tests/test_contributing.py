"""CONTRIBUTING.md names files and tables of names that exist, and docs/explanation/method.md tests that exist."""

import re
from pathlib import Path

import pytest

import swamp.algorithms
import swamp.analysis
import swamp.backends
import swamp.datasets
import swamp.masks.patterns
import swamp.models
import swamp.recipes
import swamp.scores

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = sorted(set(re.findall(r"\b(?:src|tests|benchmarks|docs|examples)/[\w./-]*\w", TEXT)))


@pytest.mark.parametrize("path", FILES)
def test_every_file_it_names_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    ("package", "name"),
    [
        (swamp.scores, "SCORES"),
        (swamp.datasets, "TASKS"),
        (swamp.models, "NETWORKS"),
        (swamp.analysis, "ANALYSES"),
        (swamp.backends, "BACKENDS"),
        (swamp.recipes, "RECIPES"),
        (swamp.recipes, "STUDIES"),
        (swamp.algorithms, "METHODS"),
        (swamp.masks.patterns, "STRUCTURES"),
    ],
)
def test_every_table_of_names_is_where_it_says(package, name):
    assert f"`{name}`" in TEXT
    assert isinstance(getattr(package, name), dict)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("src/swamp/algorithms/next_mask.py", "_PASSES"),
        ("src/swamp/models/__init__.py", "_BUILDERS"),
        ("tests/scores/networks.py", "LOOKING"),
        ("tests/scores/test_agreement.py", "INDEPENDENT"),
        ("tests/backends/test_backend_contract.py", "BACKENDS"),
    ],
)
def test_every_other_table_is_defined_there(path, name):
    assert f"`{name}` in `{path}`" in re.sub(r"\s+", " ", TEXT)
    assert re.search(rf"^{name}\b", (ROOT / path).read_text(), re.MULTILINE)


PROMISES = (ROOT / "docs" / "explanation" / "method.md").read_text().partition("## Promises")[2]


@pytest.mark.parametrize(("path", "name"), re.findall(r"`(\w+/test_[\w*]+\.py)(?:::(\w+))?`", PROMISES))
def test_every_test_that_keeps_a_promise_exists(path, name):
    files = list((ROOT / "tests").glob(path))
    assert files
    assert any(f"def {name}(" in file.read_text() for file in files) or not name
