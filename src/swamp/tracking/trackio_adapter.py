"""trackio: a local database that `trackio show` displays, or the Space of TRACKIO_SPACE_ID."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swamp.errors import need
from swamp.tracking.tracker import TrackedRun, Tracker

_trackio = need("trackio", "swamp[trackio]")
_PROJECT = "swamp"


class TrackioTracker(Tracker):
    """Logs values, the configuration, figures as images, and folders as artifacts of the type model.

    The environment variables of the library apply: TRACKIO_DIR, TRACKIO_SPACE_ID, TRACKIO_SERVER_URL ...; and
    TRACKIO_PROJECT.
    """

    def start(self, run: TrackedRun) -> str:
        """Start or continue the run, which the library finds by its name."""
        self.run: Any = _trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
            name=run.resume or run.name,
            config=dict(run.config),
            resume="allow" if run.resume else "never",
            embed=False,
            auto_log_cpu=False,
        )
        return str(self.run.name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a row."""
        _trackio.log(dict(values), step=step)

    def image(self, name: str, file: Path) -> None:
        """Add a picture."""
        _trackio.log({f"figures/{name}": _trackio.Image(str(file))})

    def artifact(self, name: str, folder: Path) -> None:
        """Add the folder as an artifact."""
        _trackio.log_artifact(str(folder), name=name, type="model")

    def finish(self, state: str) -> None:
        """Send what is buffered."""
        _trackio.finish()
