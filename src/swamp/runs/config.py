"""RunConfig: everything that makes a run, as one value that is saved and can be run again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from swamp.algorithms import Plan, method_named
from swamp.backends import backend_named
from swamp.datasets import DataOptions
from swamp.errors import SwampError
from swamp.fields import check_fields
from swamp.files import parse_json, read_text
from swamp.runs.directory import PROVENANCE
from swamp.training import Training

_MOST_THREADS = 1024


@dataclass(frozen=True)
class RunConfig:
    """A pruning run: what is learned, by which network, pruned how, trained how."""

    recipe: str = "custom"
    """Recipe, or task, that the settings started from. See `swamp list recipes`."""
    task: str = "mnist1d"
    """Data set. See `swamp list tasks`."""
    model: str = "lenet-300-100"
    """Network. See `swamp list models`."""
    plan: Plan = field(default_factory=Plan)
    training: Training = field(default_factory=Training)
    data: DataOptions = field(default_factory=DataOptions)
    device: str = "auto"
    """auto takes a GPU where there is one; or cpu, cuda, cuda:1 ..."""
    threads: int = 0
    """CPU threads of torch (0: torch's own choice). Another number gives other rounding."""
    backend: str = "auto"
    """How particles are trained at once: auto times the ways on the task itself; see `swamp list backends`."""
    keep_checkpoints: Literal["particles", "means"] = "particles"
    """What stays on disk of a finished cycle: everything, or its mean and mask only."""
    snapshot_seconds: float = 30.0
    """A particle in training is saved this often, so that a killed run loses no more than that."""
    trajectory_every: int = 0
    """Steps between two points of a particle's path that are kept for `paths` to look at (0: none), 4 bytes for each
    living weight and point; not of methods whose masks change while they train."""

    heartbeat_seconds: float = 120.0
    """Under torchrun: a rank that is silent this long counts as lost, and the job stops with its name."""

    shard: bool = False
    """Under torchrun, with two ranks or more for each particle: spread the weights of a particle in training, and what
    is kept of them, over its ranks (FSDP2). For networks that do not fit; slower otherwise."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.threads <= _MOST_THREADS:
            # Where the system refuses one of many thousands, the library that starts them ends the process.
            raise SwampError(f"threads must be 0 or more and {_MOST_THREADS} at most, got {self.threads}.")
        if self.trajectory_every < 0:
            raise SwampError(f"trajectory_every must be 0 or more, got {self.trajectory_every}.")
        if self.trajectory_every and self.keep_checkpoints != "particles":
            raise SwampError(
                "trajectory_every keeps the paths of particles, and keep_checkpoints is means: leave one of them out."
            )
        if self.trajectory_every and self.shard:
            raise SwampError(
                "trajectory_every needs a particle's weights at a given step, which --shard gathers later."
            )
        backend_named(self.backend)
        for name in ("snapshot_seconds", "heartbeat_seconds"):
            if not getattr(self, name) > 0:
                raise SwampError(f"{name} must be above 0, got {getattr(self, name)}.")

    def to_json(self) -> dict[str, Any]:
        """Nested plain values, as in config.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "RunConfig":
        """Build from what `to_json` gave. Raises SwampError naming the field that is unknown or of a wrong type."""
        try:
            config = msgspec.convert(values, cls)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise SwampError(f"the configuration does not fit: {error} ('$' is the whole of it).") from error
        known = flattened(config.to_json())
        for name in flattened(values):
            if name not in known:
                raise SwampError(f"the configuration has an unknown field {name!r}; fields are {', '.join(known)}.")
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
            cast("dict[str, Any]", values).pop(PROVENANCE, None)
        try:
            return cls.from_json(values)
        except SwampError as error:
            raise SwampError(f"{path}: {error}") from error

    def digest(self) -> str:
        """Fingerprint of the settings that decide the result (not of where it runs or what is kept)."""
        # Through the converter, as a run read back has 1.0 where a recipe may say 1.
        values = result_settings(RunConfig.from_json(self.to_json()).to_json())
        # Only those that differ from the defaults, so that a future option does not rename the runs of today.
        usual = flattened(RunConfig().to_json())
        settings = {name: value for name, value in values.items() if value != usual[name] or name in _ALWAYS}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def name(self) -> str:
        """A directory name: recipe, method, particles, seed, and a fingerprint of the rest."""
        method = method_named(self.plan.method)
        several = method.many or method.ensemble or method.longer
        count = f"-{self.plan.most_particles}" if several else ""
        return f"{self.recipe}-{self.plan.method}{count}-seed{self.plan.seed}-{self.digest()[:6]}"


_BESIDE_THE_RESULT = (
    "recipe",
    "device",
    "backend",
    "keep_checkpoints",
    "snapshot_seconds",
    "trajectory_every",
    "heartbeat_seconds",
    "shard",
    "data.folder",
    "data.workers",
)


_ALWAYS = ("task", "model", "plan.method")


def result_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the nested values of a configuration those that decide the result, by their dotted names."""
    given = flattened({name: value for name, value in values.items() if name != PROVENANCE})
    return {name: value for name, value in given.items() if name not in _BESIDE_THE_RESULT}


def differences(before: RunConfig, after: RunConfig) -> list[str]:
    """Fields that decide the result and differ, as 'training.lr: 0.1 -> 0.2'."""
    old, new = result_settings(before.to_json()), result_settings(after.to_json())
    return [f"{name}: {old[name]} -> {new[name]}" for name in old if old[name] != new[name]]


def flattened(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in cast("dict[str, Any]", values).items():
        if isinstance(value, dict):
            flat.update(flattened(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value
    return flat
