"""Optional libraries: imported when first used, with an error that states how to install them."""

import importlib
from typing import Any

from swamp.errors import SwampError


def need(module: str, install: str) -> Any:
    """Import `module`. Raises SwampError with the install command if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SwampError(
            f"this needs {module.partition('.')[0]}, which cannot be imported ({error}). "
            f"Install it: pip install '{install}'"
        ) from error
