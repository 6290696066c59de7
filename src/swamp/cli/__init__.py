"""The command line: swamp run | resume | study | compare | list."""

from swamp.cli.entry import main

__all__ = ["main"]
