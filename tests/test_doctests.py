"""The examples in the docstrings run and give the results that they state."""

import doctest
import importlib
import inspect
import pkgutil
from typing import Any

import pytest

import swamp

MODULES = [name for _, name, _ in pkgutil.walk_packages(swamp.__path__, "swamp.") if not name.endswith("__main__")]


class Finder(doctest.DocTestFinder):
    """Finds decorated functions too, such as context managers."""

    def _from_module(self, module: Any, object: Any) -> Any:
        return super()._from_module(module, inspect.unwrap(object))  # pyright: ignore


def examples(name: str) -> list[doctest.DocTest]:
    try:
        module = importlib.import_module(name)
    except (ImportError, swamp.SwampError):
        if not name.startswith("swamp.integrations.") and not name.endswith("_adapter"):
            raise
        pytest.skip(f"{name} needs a library that is not installed")
    return [test for test in Finder().find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in examples(name):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_examples_of_decorated_functions_are_found() -> None:
    assert "swamp.masks.enforce.hold" in {test.name for test in examples("swamp.masks.enforce")}
