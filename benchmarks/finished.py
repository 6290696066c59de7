"""A run for a table: made once, resumed after a stop, and read the next time."""

import json
from pathlib import Path
from threading import Event

from swamp.runs.config import RunConfig
from swamp.runs.execute import resume, start
from swamp.runs.run_progress import Reporter


def test_accuracy(config: RunConfig, path: Path) -> float:
    """Test accuracy, in %, of the last cycle of the run in `path`."""
    if not (path / "summary.json").exists():
        if (path / "config.json").exists():
            resume(path, Reporter(), Event())
        else:
            start(config, path, Reporter(), Event())
    return 100 * json.loads((path / "summary.json").read_text())["test"]["accuracy"]
