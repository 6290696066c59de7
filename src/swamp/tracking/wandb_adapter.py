"""Weights & Biases: online if there is an API key, else offline files in the run's folder for `wandb sync`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swamp.errors import need
from swamp.tracking.tracker import TrackedRun, Tracker

_wandb = need("wandb", "swamp[wandb]")
_PROJECT = "swamp"


class WandbTracker(Tracker):
    """Logs values with `step` as the axis, figures as images, and folders as artifacts of the type model.

    The environment variables of the library apply: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_API_KEY ...
    """

    def start(self, run: TrackedRun) -> str:
        """Start or continue the run."""
        mode = os.environ.get("WANDB_MODE") or ("online" if _wandb.login(prompt=False) else "offline")
        self.name = run.name
        self.run: Any = _wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            config=dict(run.config),
            dir=str(run.folder),
            mode=mode,
            id=run.resume or None,
            resume="allow" if run.resume else None,
            settings=_wandb.Settings(console="off"),
        )
        # Not its own step, which must never go back: particles may train one after another.
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        return str(self.run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a row."""
        self.run.log({**values, "step": step})

    def image(self, name: str, file: Path) -> None:
        """Add a picture."""
        self.run.log({f"figures/{name}": _wandb.Image(str(file))})

    def artifact(self, name: str, folder: Path) -> None:
        """Add the folder as an artifact, and wait until it is uploaded: the folder is deleted afterwards."""
        artifact = _wandb.Artifact(f"{name}-{self.run.id}", type="model")
        artifact.add_dir(str(folder))
        logged = self.run.log_artifact(artifact)
        if not self.run.settings._offline:
            logged.wait()

    def finish(self, state: str) -> None:
        """End the run; one that did not finish is marked as failed until it is continued."""
        self.run.finish(exit_code=0 if state == "finished" else 1)
