"""MLflow: the server of MLFLOW_TRACKING_URI, else the library's default, a database in the working folder."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swamp.errors import need
from swamp.tracking.tracker import TrackedRun, Tracker

_mlflow, _entities = (need(name, "swamp[mlflow]") for name in ("mlflow", "mlflow.entities"))
_EXPERIMENT = "swamp"
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_LONGEST = 500
"""Characters of a parameter that every server accepts."""


class MlflowTracker(Tracker):
    """Logs values, settings as parameters, figures and folders as artifacts.

    The environment variables of the library apply: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME ...
    """

    def start(self, run: TrackedRun) -> str:
        """Create the run, or open it again."""
        # The library's default, seven times with growing pauses, keeps a run waiting for minutes at its end.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        self.client: Any = _mlflow.MlflowClient()
        if run.resume:
            self.client.update_run(run.resume, status="RUNNING")
            self.id = run.resume
            return self.id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        self.id = str(self.client.create_run(experiment, run_name=run.name).info.run_id)
        settings = [_entities.Param(name, str(value)[:_LONGEST]) for name, value in run.config.items()]
        for first in range(0, len(settings), 100):
            self.client.log_batch(self.id, params=settings[first : first + 100])
        return self.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values."""
        now = int(1000 * time.time())
        self.client.log_batch(
            self.id, metrics=[_entities.Metric(name, value, now, step) for name, value in values.items()]
        )

    def image(self, name: str, file: Path) -> None:
        """Add a picture to the artifacts."""
        self.client.log_artifact(self.id, str(file), "figures")

    def artifact(self, name: str, folder: Path) -> None:
        """Add the folder to the artifacts."""
        self.client.log_artifacts(self.id, str(folder), name)

    def finish(self, state: str) -> None:
        """Set the status."""
        self.client.set_terminated(self.id, _STATUS[state])
