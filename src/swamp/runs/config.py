"""RunConfig: all settings of a run, saved in config.json."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from swamp.algorithms import Plan
from swamp.backends import backend_named
from swamp.datasets.problem import DataOptions
from swamp.errors import SwampError, unknown
from swamp.fields import RENAMED, check_at_least, check_fields, with_tuples
from swamp.files import parse_json, read_text
from swamp.runs.directory import PROVENANCE
from swamp.training import Training

MOST_THREADS = 1024
"""The threading library ends the process if the system refuses to start a thread."""

ORIGIN = "origin"
"""Key of config.json for what is not a setting: the source of models, tasks and optimizers that are not swamp's."""


@dataclass(frozen=True)
class RunConfig:
    """All settings of a pruning run: task, model, pruning plan, training, data, machine."""

    recipe: str = "custom"
    """Recipe, or task, from which the settings start. See `swamp list recipes`."""
    task: str = "mnist1d"
    """Data set, see `swamp list tasks`; or package.module:function, or file.py:function, that returns a swamp.Task."""
    model: str = "lenet-300-100"
    """Network, see `swamp list models`; or package.module:function, or file.py:function, that returns a module."""
    plan: Plan = field(default_factory=Plan)
    training: Training = field(default_factory=Training)
    data: DataOptions = field(default_factory=DataOptions)
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    threads: int = 0
    """CPU threads of torch (0: torch's default). Another number changes rounding."""
    backend: str = "auto"
    """How particles are trained in parallel; auto times the backends on the task, and config.json then has the choice
    (such as auto:vmapped) for a rerun with the same bits. See `swamp list backends`."""
    keep_checkpoints: Literal["particles", "means"] = "particles"
    """Checkpoints to keep per finished cycle: all particles, or only the mean and mask."""
    snapshot_seconds: float = 30.0
    """Seconds between two snapshots of a particle in training: a killed run loses at most this time."""
    test_data: bool = True
    """Measure each cycle on test data, for the record. Off: test data is never read, as in the trials of `swamp tune`;
    the record then has no value for it."""
    trajectory_every: int = 0
    """Steps between two points of the training trajectory to save for `swamp analyze` (0: none): 4 bytes per point and
    active weight. Not with dynamic masks."""

    track: str = ""
    """Trackers to log to, separated by commas: tensorboard, wandb, mlflow, trackio. See docs/howto/trackers.md."""

    heartbeat_seconds: float = 120.0
    """Under torchrun: seconds without a heartbeat after which a rank counts as failed and the job stops."""

    shard: bool = False
    """Under torchrun, with at least two ranks per particle: shard weights and optimizer state over the particle's ranks
    (FSDP2). For networks that do not fit in memory; slower otherwise."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.threads <= MOST_THREADS:
            raise SwampError(f"threads must be from 0 to {MOST_THREADS}, got {self.threads}.")
        check_at_least(self, 0, "trajectory_every")
        if self.trajectory_every and self.keep_checkpoints != "particles":
            raise SwampError(
                "trajectory_every saves trajectories of particles, but keep_checkpoints is means: leave one out."
            )
        if self.trajectory_every and self.shard:
            raise SwampError(
                "trajectory_every cannot be combined with --shard, which has no whole weights at every step."
            )
        backend_named(self.backend)
        for name in ("snapshot_seconds", "heartbeat_seconds"):
            if not getattr(self, name) > 0:
                raise SwampError(f"{name} must be above 0, got {getattr(self, name)}.")

    def to_json(self) -> dict[str, Any]:
        """Nested plain values for config.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "RunConfig":
        """Inverse of `to_json`. Raises SwampError, naming the field, if it is unknown or has a wrong type."""
        try:
            config = msgspec.convert(with_tuples(cls, values), cls)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise SwampError(f"invalid configuration: {error} ('$' is the top level).") from error
        _require_known(values, config.to_json())
        return config

    @classmethod
    def load(cls, path: Path) -> "RunConfig":
        """Read a config.json: of a run, or written by hand."""
        try:
            values = parse_json(read_text(path))
        except OSError as error:
            raise SwampError(f"cannot read the configuration {path}: {error.strerror}.") from error
        except ValueError as error:
            raise SwampError(f"{path} is not JSON ({error}).") from error
        if isinstance(values, dict):
            for name in (PROVENANCE, ORIGIN):
                cast("dict[str, Any]", values).pop(name, None)
        try:
            return cls.from_json(values)
        except SwampError as error:
            raise SwampError(f"{path}: {error}") from error

    def digest(self) -> str:
        """Fingerprint of the settings that decide the result (not device, backend or what is kept)."""
        # Converted, as a recipe may have 1 where config.json has 1.0.
        values = result_settings(RunConfig.from_json(self.to_json()).to_json())
        # Only those that differ from the defaults, so that a future option does not rename the runs of today.
        usual = flattened(RunConfig().to_json())
        settings = {name: value for name, value in values.items() if value != usual[name] or name in _ALWAYS}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def name(self) -> str:
        """A directory name: recipe, method, particles, seed, fingerprint."""
        method = self.plan.spec
        several = method.multi_particle or method.ensemble or method.equal_cost
        number = "auto" if "auto" in self.plan.particles else self.plan.most_particles
        count = f"-{number}" if several else ""
        recipe = re.sub(r"[^\w.-]+", "-", self.recipe)
        return f"{recipe}-{self.plan.method}{count}-seed{self.plan.seed}-{self.digest()[:6]}"


_BESIDE_THE_RESULT = (
    "recipe",
    "device",
    "backend",
    "keep_checkpoints",
    "snapshot_seconds",
    "test_data",
    "trajectory_every",
    "track",
    "heartbeat_seconds",
    "shard",
    "data.folder",
    "data.workers",
)


_ALWAYS = ("task", "model", "plan.method")


def result_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the result, of a configuration's nested values, by dotted name."""
    given = flattened({name: value for name, value in values.items() if name != PROVENANCE})
    return {name: value for name, value in given.items() if name not in _BESIDE_THE_RESULT}


def differences(before: RunConfig, after: RunConfig) -> list[str]:
    """Settings that decide the result and differ, as 'training.lr: 0.1 -> 0.2'."""
    old, new = result_settings(before.to_json()), result_settings(after.to_json())
    return [f"{name}: {old[name]} -> {new[name]}" for name in old if old[name] != new[name]]


def changed_options(before: RunConfig, after: RunConfig) -> list[str]:
    """Names of the fields that differ, without the name of the part that they belong to."""
    old, new = flattened(before.to_json()), flattened(after.to_json())
    return [name.rpartition(".")[2] for name in new if old[name] != new[name]]


def _require_known(values: Mapping[str, Any], known: Mapping[str, Any], path: tuple[str, ...] = ()) -> None:
    """Raise SwampError for the first field of nested `values` that `known` does not have there."""
    for name, value in values.items():
        if name in known:
            if isinstance(known[name], dict):
                _require_known(value, known[name], (*path, name))
            continue
        last = name.rpartition(".")[2]
        every = flattened(RunConfig().to_json())
        places = [field for field in every if field.rpartition(".")[2] == RENAMED.get(last, last)]
        if not places:
            raise SwampError(f"invalid configuration: {unknown('field', '.'.join((*path, name)), every)}")
        *above, field = places[0].split(".")
        raise SwampError(
            f'invalid configuration: unknown field "{name}" in {_place(path)}. '
            f'Did you mean "{field}" in {_place(above)}?'
        )


def _place(path: Sequence[str]) -> str:
    return f'"{".".join(path)}"' if path else "the outermost object"


def flattened(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in cast("dict[str, Any]", values).items():
        if isinstance(value, dict):
            flat.update(flattened(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value
    return flat
