"""A study: a short description of many runs, from a TOML file, and the configuration of each run."""

import itertools
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from swamp.algorithms.registry import method_named
from swamp.algorithms.unused import unused_options
from swamp.datasets import task_named, unread_options
from swamp.errors import SwampError, unknown
from swamp.fields import RENAMED, check_fields, with_tuples
from swamp.files import read_text
from swamp.runs.config import RunConfig, flattened

Options = Mapping[str, Any]
Split = Literal["test", "validation", "train"]
Recipe = Callable[[str, str, str], RunConfig]
"""(recipe, task, model), each empty where it is not set -> the configuration that the other options change."""

BESIDE_RUNS = ("study.json", "comparison")
"""Names in a study's folder that are not runs."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,+=-]{0,199}")


@dataclass(frozen=True)
class CompareOptions:
    """How the finished runs of a study are compared: options of `swamp compare`."""

    metric: str = ""
    split: Split = "test"
    baseline: str | None = None
    sparsities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Study:
    """The content of a study file. Options are named by their flag (`lr`) or field (`training.lr`)."""

    recipe: str = ""
    """Recipe of every run; empty: the default. Also an option of a grid or run, to use several recipes."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options of all runs."""
    grid: dict[str, Any] | list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Options with lists of values; every combination is a run. A list for several grids."""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Single runs by name, with their options."""
    name: str = ""
    """Template for names of the grid's runs, e.g. '{method}-{seed}'; empty: the options that have a list."""
    compare: CompareOptions = field(default_factory=CompareOptions)
    """How finished runs are compared at the end."""
    search: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options with a range, for `swamp tune`."""

    @classmethod
    def load(cls, path: Path) -> "Study":
        """Read a TOML file. Raises SwampError for invalid TOML, an unknown key or a value of a wrong type."""
        try:
            values = tomllib.loads(read_text(path))
        except OSError as error:
            raise SwampError(f"cannot read the study {path}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise SwampError(f"{path} is not TOML: {error}.") from error
        return cls.from_toml(values, str(path))

    @classmethod
    def from_toml(cls, values: Mapping[str, Any], where: str) -> "Study":
        """Build from parsed TOML; `where` names the file in errors."""
        known = [one.name for one in fields(cls)]
        for key in values:
            if key not in known:
                error = unknown("key", key, known)
                raise SwampError(f"{where}: {error} (Options of runs belong under [settings], [grid] or [runs.NAME].)")
        try:
            study = msgspec.convert(with_tuples(cls, dict(values)), cls)
        except msgspec.ValidationError as error:
            raise SwampError(f"{where} does not fit: {error} ('$' is the whole file).") from error
        options = [one.name for one in fields(CompareOptions)]
        for key in values.get("compare", {}):
            if key not in options:
                raise SwampError(f"{where}, [compare]: {unknown('option', key, options)}")
        return study

    def configurations(self, recipe: Recipe, where: str) -> dict[str, RunConfig]:
        """Name -> configuration of all runs; single runs are last.

        Raises SwampError, naming the run, for an unknown option or invalid value, for two runs with the same name or
        the same settings, and if there is no run.
        """
        if self.search:
            raise SwampError(f"{where} has ranges under [search], which swamp tune searches: swamp tune {where}")
        found: dict[str, RunConfig] = {}
        origins: dict[str, str] = {}
        alike: dict[RunConfig, str] = {}
        given: list[tuple[dict[str, Any], RunConfig]] = []
        for name, options, origin in self._named(where):
            if name in origins:
                raise SwampError(
                    f"{where}: two runs are named {name!r}: {origins[name]}, and {origin}. "
                    "Give the runs different names with `name`, e.g. name = '{method}-{lr}-{seed}'."
                )
            if not names_a_run(name):
                raise SwampError(
                    f"{where}: {name!r} cannot be the name of a run, which names a directory: use letters from a to z, "
                    f"digits and _ . , + = - (at most 200, not {' or '.join(BESIDE_RUNS)}). ({origin})"
                )
            origins[name] = origin
            found[name] = config = self._configuration(options, recipe, f"{where}: run {name!r}")
            given.append((options, config))
            first = alike.setdefault(replace(config, recipe=""), name)
            if first != name:
                raise SwampError(
                    f"{where}: {first} and {name} are the same run: {origins[first]}, and {origin}. Leave one out."
                )
        if not found:
            raise SwampError(f"{where} has no run: give [grid] options with at least one value each, or [runs.NAME].")
        self._refuse_unused(given, where)
        return found

    def _refuse_unused(self, runs: Sequence[tuple[Options, RunConfig]], where: str) -> None:
        """Raise SwampError for an option that no run uses. runs: the options of each run, and its configuration."""
        effects: dict[str, str] = {}
        for options, config in runs:
            given = [*resolved_options(self.settings, where, varied=False), *options]
            unused = unused_options(config.plan, config.training)
            if any(option.startswith("data.") for option in given):
                unused |= unread_options(config.task)
            for option in given:
                # The methods of a study share options: one run that uses an option is enough.
                why = unused.get(option.rpartition(".")[2], "")
                effects[option] = why and effects.get(option, why)
        for option, why in effects.items():
            if why:
                raise SwampError(f"{where}: {option} has no effect in any run: {why}. Leave it out.")

    def to_tune(self, recipe: Recipe, where: str) -> tuple[RunConfig, tuple[str, ...]]:
        """What `swamp tune` starts from: the configuration of [settings], and the methods of [grid].

        Raises SwampError for what only `swamp study` runs: single runs, several grids, and other options in the grid.
        """
        grids = [self.grid] if isinstance(self.grid, dict) else self.grid
        grid = resolved_options(grids[0], f"{where}, [grid]", varied=True) if grids else {}
        if self.runs or len(grids) > 1 or grid.keys() - {"plan.method"}:
            others = sorted({*grid} - {"plan.method"}) or ["several grids, or single runs"]
            raise SwampError(
                f"{where}: a tuning has one [grid] with methods only; found {', '.join(others)}. Options with one "
                "value belong under [settings], ranges under [search]."
            )
        config = self._configuration({}, recipe, where)
        methods = [str(method) for method in _listed(grid.get("plan.method", config.plan.method))]
        for method in methods:
            method_named(method)
        return config, tuple(methods)

    def set_options(self, where: str) -> set[str]:
        """The dotted fields that [settings] sets."""
        return {*resolved_options(self.settings, f"{where}, [settings]", varied=False)}

    def _named(self, where: str) -> Iterator[tuple[str, dict[str, Any], str]]:
        grids = [self.grid] if isinstance(self.grid, dict) else self.grid
        for number, grid in enumerate(grids, 1):
            if not grid:
                continue
            place = "[grid]" if len(grids) == 1 else f"grid {number}"
            options = resolved_options(grid, f"{where}, {place}", varied=True)
            for name, value in options.items():
                if value == []:
                    raise SwampError(f"{where}, {place}: {name} has no value, so the grid is empty.")
            several = [name for name, value in options.items() if isinstance(value, list)]
            for values in itertools.product(*(_listed(value) for value in options.values())):
                chosen = dict(zip(options, values, strict=True))
                name = self._name(chosen, several, f"{where}, {place}")
                yield name, chosen, f"{place} with {_described({key: chosen[key] for key in several or chosen})}"
        for name, options in self.runs.items():
            given = resolved_options(options, f"{where}, [runs.{name}]", varied=False)
            yield name, given, f"[runs.{name}] with {_described(given)}"

    def _name(self, chosen: Options, several: list[str], where: str) -> str:
        if not self.name:
            return "-".join(_part(name, chosen[name]) for name in several or chosen)
        given = {**resolved_options(self.settings, where, varied=False), **chosen}

        def value(found: re.Match[str]) -> str:
            name = field_of_option(found[1], f"{where}, name")
            if name not in given:
                raise SwampError(f"{where}: {self.name!r} contains {{{found[1]}}}, which is no option of the study.")
            return _text(given[name])

        return re.sub(r"\{([^{}]*)\}", value, self.name)

    def _configuration(self, options: dict[str, Any], recipe: Recipe, where: str) -> RunConfig:
        settings = {**resolved_options(self.settings, f"{where}, [settings]", varied=False), **options}
        start = settings.pop("recipe", self.recipe)
        try:
            config = with_fields(recipe(start, str(settings.get("task", "")), str(settings.get("model", ""))), settings)
            task_named(config.task)
            config.plan.training(config.training, 0)
        except SwampError as error:
            raise SwampError(f"{where}: {error}") from error
        return config


def with_fields(config: RunConfig, settings: Options) -> RunConfig:
    """The configuration with other values of fields, by their dotted name.

    Raises SwampError for a value of another type, or one that is not possible.
    """
    values = config.to_json()
    for name, value in settings.items():
        *path, last = name.split(".")
        table = values
        for part in path:
            table = table[part]
        table[last] = value
    return RunConfig.from_json(values)


def names_a_run(name: str) -> bool:
    """Whether `name` is a valid name of a run, and so of a directory in the study's folder."""
    return bool(_NAME.fullmatch(name)) and name not in BESIDE_RUNS


def resolved_options(options: Options, where: str, *, varied: bool) -> dict[str, Any]:
    """Options by their dotted field. In a grid (`varied`) a list has one value per run; elsewhere it is one value."""
    found: dict[str, Any] = {}
    for given, value in flattened(options).items():
        name = field_of_option(given, where)
        if name in found:
            raise SwampError(f"{where}: {name} is set twice, the second time as {given!r}.")
        if name == "recipe" and not all(isinstance(one, str) for one in (_listed(value) if varied else [value])):
            raise SwampError(f"{where}: a recipe is given by its name, got {value!r}.")
        found[name] = value
    return found


def field_of_option(given: str, where: str) -> str:
    """The dotted field of RunConfig for `given`: the full name or its last part, with - or _.

    Raises SwampError, with the nearest names, if there is none; `where` begins its message.
    """
    known = list(flattened(RunConfig().to_json()))
    name = given.replace("-", "_")
    if name in known:
        return name
    meant = [field for field in known if field.rpartition(".")[2] == name]
    if len(meant) > 1:
        raise SwampError(f"{where}: {given!r} may be {' or '.join(meant)}; write the whole name.")
    if not meant and (last := name.rpartition(".")[2]) in RENAMED:
        raise SwampError(f"{where}: unknown option {given!r}. Did you mean {RENAMED[last]}?")
    if not meant:
        short = {field.rpartition(".")[2].replace("_", "-") for field in known}
        raise SwampError(f"{where}: {unknown('option', given, known if '.' in given else short)}")
    return meant[0]


def _listed(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _described(options: Options) -> str:
    return ", ".join(f"{name} = {_text(value)}" for name, value in options.items()) or "no option"


def _part(name: str, value: Any) -> str:
    """Part of a run's name for one option: text as it is, a number with the option's name."""
    return value if isinstance(value, str) else f"{name.rpartition('.')[2]}{_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, cast("list[Any]", value)))
    return str(value).lower() if isinstance(value, bool) else str(value)
