"""The command line: swamp run | resume | study | compare | analyze | report | watch | figure | list."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: see swamp.cli.entry."""
    try:
        # Here, as it takes seconds: who changes their mind meanwhile is not shown the inside of an import.
        from swamp.cli import entry
    except KeyboardInterrupt:
        sys.stderr.write("swamp: stopped before anything began.\n")
        sys.exit(130)
    entry.main(arguments)
