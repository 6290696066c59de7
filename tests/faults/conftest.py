"""The campaigns lie in the folder faults/; here are their short forms, which call the same functions."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))
