"""Libraries that only some tasks need: imported when first used, with an error that says how to get them."""

import importlib
from typing import Any

from swamp.errors import SwampError


def need(module: str, install: str) -> Any:
    """Import `module`. Raises SwampError with the command that installs it where it is absent."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SwampError(
            f"this task needs {module.partition('.')[0]}, which cannot be imported ({error}). "
            f"Install it: pip install '{install}'"
        ) from error
