"""Each public name of a module, and each module, has one meaning in the whole package."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import swamp

PACKAGE = Path(swamp.__file__).parent
MIRRORED = {"HoldMask", "backend", "cycles"}
"""The integrations with Lightning and Hugging Face offer the same names on purpose; swamp.cycles is the loop of
algorithms with a run directory and progress."""
MODULES = {"loop", "pruning", "study"}
"""Modules of two packages that have one topic at two levels, such as runs/study.py and its command cli/study.py."""


def public_names(source: str) -> set[str]:
    names: set[str] = set()
    for statement in ast.parse(source).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.add(statement.name)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.slow
def test_no_public_name_is_defined_in_two_modules():
    modules: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in public_names(path.read_text()):
            modules[name].append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in modules.items() if len(paths) > 1 and name not in MIRRORED} == {}


def test_no_two_modules_have_the_same_name():
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.stem.startswith("__")]
    twice = {path.stem for path in paths if sum(other.stem == path.stem for other in paths) > 1}
    assert twice <= MODULES


@pytest.mark.slow
def test_fetching_a_name_draws_nothing_from_the_global_generators():
    code = "import random, swamp; state = random.getstate(); swamp.prune; assert random.getstate() == state"
    subprocess.run([sys.executable, "-c", code], check=True)
