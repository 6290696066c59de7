"""A tuning on disk: tuning.json with what is searched, a run directory per trial, and the best configurations."""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from swamp.algorithms.unused import unused_options
from swamp.errors import CorruptFile, SwampError, shortened
from swamp.files import make_folder, one_at_a_time, remove_unfinished
from swamp.runs.budget import at_equal_cost, cost_of
from swamp.runs.config import RunConfig, result_settings
from swamp.runs.directory import add_checksum, read_json, verify_checksum, write_json
from swamp.runs.study import with_fields
from swamp.runs.study_queue import StudyDirectory
from swamp.tuning.search_space import OptionValue, SearchRange

EarlyStopping = Literal["halving", "hyperband", "none"]


@dataclass(frozen=True)
class TuningPlan:
    """What is searched, for which methods, and how trials are judged."""

    base: RunConfig
    """Values of the options that are not searched; its method is replaced by each of `methods`."""
    methods: tuple[str, ...]
    search: tuple[SearchRange, ...]
    metric: str
    """Metric on validation data, after the last cycle of a trial."""
    higher: bool
    """Whether a higher metric is better."""
    early_stopping: EarlyStopping = "halving"
    grace: int = 0
    """Cycles after which a trial may be stopped early (0: a third of them, and at least two)."""

    def base_of(self, method: str) -> RunConfig:
        """The configuration before the search, of one method."""
        return replace(self.base, plan=replace(self.base.plan, method=method))

    def ranges_of(self, method: str) -> list[SearchRange]:
        """The ranges of the options that a method uses."""
        base = self.base_of(method)
        # With each option at its last value: sharpness has an effect if sam is searched.
        tried = with_fields(base, {one.field: one.ends[-1] for one in self.search if one.field == "training.sam"})
        unused = unused_options(tried.plan, tried.training)
        return [one for one in self.search if one.field.rpartition(".")[2] not in unused]

    def trial(self, method: str, settings: Mapping[str, OptionValue]) -> RunConfig:
        """The configuration of a trial: at equal cost, without test data. settings: option -> value.

        A particle that diverges ends the trial: a restart with a lower learning rate would judge that one.

        Raises SwampError if no run can have these settings together, or not at equal cost.
        """
        found = self.best(method, settings)
        plan = replace(found.plan, on_divergence="stop", barrier_points=0)
        return replace(found, plan=plan, keep_checkpoints="means", test_data=False, trajectory_every=0)

    def best(self, method: str, settings: Mapping[str, OptionValue]) -> RunConfig:
        """The configuration of a trial, as `swamp run --config` takes it: with test data and all records."""
        base = self.base_of(method)
        fields = {one.field: settings[one.option] for one in self.ranges_of(method)}
        found = at_equal_cost(with_fields(base, fields), cost_of(base))
        found.plan.spec.training(found.training)  # raises for SWA without a tail
        return found

    def first(self, method: str) -> dict[str, OptionValue] | None:
        """The values of the recipe, if they lie in the ranges: the first trial has them."""
        values: dict[str, OptionValue] = {}
        for one in self.ranges_of(method):
            value: Any = self.base_of(method)
            for part in one.field.split("."):
                value = getattr(value, part)
            if isinstance(value, tuple):
                items = cast("tuple[OptionValue, ...]", value)
                value = items[0] if len(items) == 1 else None
            if value is None or not one.contains(value):
                return None
            values[one.option] = value
        return values

    def grace_of(self, cycles: int) -> int:
        """Cycles after which a trial of that many cycles may be stopped."""
        return self.grace or max(2, -(-cycles // 3))

    def to_json(self) -> dict[str, Any]:
        """Plain values, as JSON returns them."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TuningPlan":
        """Inverse of `to_json`."""
        base = RunConfig.from_json(values["base"])  # names unknown fields
        return replace(msgspec.convert(values, cls), base=base)

    @cached_property
    def digest(self) -> str:
        """Fingerprint of all that decides the trials; not of the device, the backend or the number of trials."""
        parts = {**self.to_json(), "base": self.base.digest()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """A directory name, and the beginning of the names of the studies in the storage."""
        methods = "+".join(self.methods)
        return f"{self.base.recipe}-{methods}-seed{self.base.plan.seed}-{self.digest[:6]}".replace("/", "-")

    def differences(self, other: "TuningPlan") -> list[str]:
        """What differs from another tuning, as 'metric: accuracy -> nll'."""
        mine, theirs = self._settings(), other._settings()
        names = dict.fromkeys([*mine, *theirs])
        return [
            f"{name}: {mine.get(name)} -> {theirs.get(name)}" for name in names if mine.get(name) != theirs.get(name)
        ]

    def _settings(self) -> dict[str, Any]:
        ranges = {f"--search {one.option}": str(one).partition("=")[2] for one in self.search}
        parts = {name: value for name, value in self.to_json().items() if name not in ("base", "search")}
        return {**ranges, **parts, **result_settings(self.base.to_json())}


def check_tuning(tuning: TuningPlan) -> None:
    """Raise SwampError for a tuning in which a method or range is not possible, before any work."""
    if not tuning.methods or len(set(tuning.methods)) < len(tuning.methods):
        raise SwampError(f"methods must name each method once, got {', '.join(tuning.methods) or 'none'}.")
    for method in tuning.methods:
        base = tuning.base_of(method)
        base.plan.spec.training(base.training)
        ranges = tuning.ranges_of(method)
        if not ranges:
            why = unused_options(base.plan, base.training)
            told = "; ".join(f"{one.option}: {why[one.field.rpartition('.')[2]]}" for one in tuning.search)
            raise SwampError(f"{method} uses none of the searched options ({told}). Search others, or leave it out.")
        for one in ranges:
            _check_range(tuning, method, one)
    used = {one.field for method in tuning.methods for one in tuning.ranges_of(method)}
    for one in tuning.search:
        if one.field not in used:
            first = tuning.base_of(tuning.methods[0])
            why = unused_options(first.plan, first.training)[one.field.rpartition(".")[2]]
            raise SwampError(f"--search '{one}': it has no effect: {why}. Leave it out.")


_PROBES = 16


def _check_range(tuning: TuningPlan, method: str, one: SearchRange) -> None:
    """Raise SwampError unless each choice, or some number of the range, is possible beside the recipe's values."""
    base = tuning.base_of(method)
    values: Sequence[OptionValue] = one.choices
    if not values:
        spread = [one.low + (one.high - one.low) * index / (_PROBES - 1) for index in range(_PROBES)]
        values = [round(value) if one.whole else value for value in spread]
    errors: list[SwampError] = []
    for value in values:
        try:
            at_equal_cost(with_fields(base, {one.field: value}), cost_of(base))
        except SwampError as error:
            errors.append(SwampError(f"--search '{one}': {method} with {one.option} {value}: {error}"))
    if errors and (one.choices or len(errors) == len(values)):
        raise errors[0]


@dataclass(frozen=True)
class TuningDirectory:
    """The folder of a tuning."""

    path: Path
    tuning: TuningPlan
    storage: str
    """Where trials are recorded, without a password."""
    trials: int
    """Trials of each method."""
    identity: str
    """Names this folder in the storage, which several folders may share."""

    @classmethod
    def open(cls, path: Path) -> "TuningDirectory":
        """Read a tuning from its folder. Raises SwampError if `path` holds none."""
        file = _listing(path)
        if not file.exists():
            raise SwampError(f"{path} holds no tuning: there is no {file.name} in it.")
        values, _ = verify_checksum(read_json(file), str(file))
        try:
            tuning = TuningPlan.from_json(values["tuning"])
            return cls(path, tuning, values["storage"], values["trials"], values["identity"])
        except (KeyError, TypeError, AttributeError, msgspec.ValidationError) as error:
            raise CorruptFile(
                f"{file} is damaged: an entry is missing or wrong ({error}). Restore the file."
            ) from error
        except SwampError as error:
            raise SwampError(f"{file}: {error}") from error

    @classmethod
    def join(cls, path: Path, tuning: TuningPlan, storage: str, trials: int) -> "TuningDirectory":
        """Start the tuning in `path`, or join the one there; the number of trials may change.

        Raises SwampError, naming the differences, if the folder holds another tuning.
        """
        with one_at_a_time(path / ".lock"):
            remove_unfinished(_listing(path))
            before = cls.open(path) if _listing(path).exists() else None
            if before and (other := before.tuning.differences(tuning)):
                raise SwampError(
                    f"{path} holds another tuning. It differs in {shortened(other)}. Choose another --out, or repeat "
                    "the options of that tuning."
                )
            if before and before.storage != storage:
                raise SwampError(
                    f"the trials of {path} are recorded in {before.storage}, and --storage is {storage}. Give the "
                    "first, or choose another --out."
                )
            found = cls(path, tuning, storage, trials, before.identity if before else uuid.uuid4().hex)
            if found != before:
                values = {"tuning": tuning.to_json(), "storage": storage, "trials": trials, "identity": found.identity}
                make_folder(path)
                write_json(_listing(path), add_checksum(values))
        return found

    def runs_of(self, method: str, configs: Mapping[str, RunConfig] | None = None) -> StudyDirectory:
        """The run directories of a method's trials. configs: of the trials whose progress is asked for."""
        return StudyDirectory(self.path / method, configs or {})

    def best_config(self, method: str) -> Path:
        """File of the best configuration of a method."""
        return self.path / f"best-{method}.json"


def is_tuning(path: Path) -> bool:
    """Whether `path` is the folder of a tuning."""
    return _listing(path).exists()


def trial_name(number: int) -> str:
    """Name of the run directory of a trial."""
    return f"trial-{number:04d}"


def _listing(path: Path) -> Path:
    return path / "tuning.json"
