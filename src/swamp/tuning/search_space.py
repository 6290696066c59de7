"""Search ranges: which values an option takes in the trials of a tuning, and their checks."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from swamp.errors import SwampError, shortened
from swamp.runs.config import RunConfig
from swamp.runs.study import field_of_option, with_fields

OptionValue = bool | int | float | str

_HOW = "write 'lr=0.01..1:log' for a range, 'particles=2,4,8' for single values, or 'lr' for its default range"


@dataclass(frozen=True)
class SearchRange:
    """The values that one option takes: `choices`, or all numbers from `low` to `high`."""

    field: str
    """Dotted field of RunConfig, such as training.lr."""
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    """Whole numbers only."""
    log: bool = False
    """Uniform in the logarithm."""
    step: float | None = None
    choices: tuple[OptionValue, ...] = ()

    @property
    def option(self) -> str:
        """Name of the option, as its flag without the dashes: swa-lr."""
        return self.field.rpartition(".")[2].replace("_", "-")

    @property
    def ends(self) -> tuple[OptionValue, ...]:
        """The choices, or the smallest and the largest number."""
        return self.choices or tuple(int(end) if self.whole else end for end in (self.low, self.high))

    def contains(self, value: OptionValue) -> bool:
        """Whether a trial may have this value."""
        if self.choices:
            return value in self.choices
        if isinstance(value, str | bool) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def __str__(self) -> str:
        """The range as `--search` takes it."""
        if self.choices:
            return f"{self.option}={','.join(map(shown_value, self.choices))}"
        low, high = self.ends
        step = "" if self.step is None else f":step={self.step:.6g}"
        return f"{self.option}={low:.6g}..{high:.6g}{':log' if self.log else ''}{step}"


def parse_range(given: str, config: RunConfig) -> SearchRange:
    """The range that `--search` describes, such as "lr=0.01..1:log", "particles=2,4,8" or "lr" alone.

    Args:
        given: The description.
        config: The configuration that is tuned; default ranges lie around its values.

    Returns:
        The range, checked: each of its ends is a possible value.

    Raises:
        SwampError: The option does not exist or cannot be searched, or the range is empty or has impossible values.

    Examples:
        >>> str(parse_range("lrr", RunConfig()))
        Traceback (most recent call last):
        swamp.errors.SwampError: --search 'lrr': unknown option 'lrr'. Did you mean lr?
    """
    name, equals, text = (part.strip() for part in given.partition("="))
    where = f"--search '{given}'"
    return range_of(name, text if equals else True, config, where)


def range_of(name: str, given: Any, config: RunConfig, where: str) -> SearchRange:
    """The range of the option `name`: text as in `parse_range`, a list of values, a table with low and high, or True.

    `where` begins the messages; the rest is as in `parse_range`.
    """
    field = field_of_option(_SYNONYMS.get(name.replace("-", "_"), name), where)
    if why := _why_fixed(field):
        raise SwampError(f"{where}: {name} cannot be searched: {why}.")
    by_default = given is True
    if by_default:
        given = _default(field, config, where)
    if isinstance(given, Mapping):
        found = _of_table(field, cast("Mapping[str, Any]", given), where)
    elif isinstance(given, list):
        found = _of_choices(field, [*map(str, cast("list[Any]", given))], where)
    else:
        found = _of_text(field, str(given), where)
    for value in found.ends:
        try:
            with_fields(config, {field: value})
        except SwampError as error:
            raise SwampError(f"{where}: {error}") from error
    return found


_SYNONYMS = {"learning_rate": "lr", "wd": "weight_decay", "n_particles": "particles", "swa_learning_rate": "swa_lr"}


def _of_text(field: str, text: str, where: str) -> SearchRange:
    if not text:
        raise SwampError(f"{where} has no value: {_HOW}.")
    if ".." not in text:
        return _of_choices(field, text.split(","), where)
    ends, *more = text.split(":")
    low, _, high = ends.partition("..")
    table: dict[str, Any] = {"low": low, "high": high}
    for one in more:
        name, _, value = one.partition("=")
        if name not in ("log", "step") or bool(value) != (name == "step"):
            raise SwampError(f"{where}: {one!r} is neither log nor step=NUMBER; {_HOW}.")
        table[name] = value or True
    return _of_table(field, table, where)


def _of_table(field: str, table: Mapping[str, Any], where: str) -> SearchRange:
    if unknown_keys := table.keys() - {"low", "high", "log", "step"}:
        raise SwampError(
            f"{where}: unknown key {shortened(sorted(unknown_keys))}; a range has low, high, log and step."
        )
    kind = _kind(field)
    if kind not in (int, float):
        raise SwampError(f"{where}: its values are {_values_of(kind)}, which have no order: write them, with commas.")
    low, high = (_number(table.get(end, ""), kind, where) for end in ("low", "high"))
    log, step = bool(table.get("log")), None if "step" not in table else _number(table["step"], kind, where)
    if low > high:
        raise SwampError(f"{where}: the range is empty, as {low:g} is above {high:g}. Write {high:g}..{low:g}.")
    if low == high:
        raise SwampError(f"{where}: the range has the single value {low:g}. Set it: --{_flag(field)} {low:g}")
    if log and low <= 0:
        raise SwampError(f"{where}: a logarithmic range begins above 0, got {low:g}.")
    if step is not None and (log or not 0 < step <= high - low):
        raise SwampError(f"{where}: step must lie between 0 and {high - low:g}, and cannot be combined with log.")
    if step is not None:
        # In decimal numbers, as Optuna counts: 0.8 + 12 * 0.3 is below 4.4 in binary ones.
        first, each = Decimal(str(low)), Decimal(str(step))
        high = float(first + each * ((Decimal(str(high)) - first) // each))
    return SearchRange(field, float(low), float(high), kind is int, log, step)


def _of_choices(field: str, texts: list[str], where: str) -> SearchRange:
    kind = _kind(field)
    values = [_value(text.strip(), kind, where) for text in texts if text.strip()]
    if not values:
        raise SwampError(f"{where} has no value: {_HOW}.")
    if len(set(values)) < len(values):
        raise SwampError(f"{where} has a value twice.")
    if len(values) == 1:
        raise SwampError(f"{where} has a single value. Set it: --{_flag(field)} {shown_value(values[0])}; or {_HOW}.")
    return SearchRange(field, choices=tuple(values))


def _value(text: str, kind: Any, where: str) -> OptionValue:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise SwampError(f"{where}: its values are true and false, got {text!r}.")
        return text.lower() == "true"
    return _number(text, kind, where) if kind in (int, float) else text


def _number(given: Any, kind: Any, where: str) -> int | float:
    text = str(given).strip()
    try:
        value = float(text)
    except ValueError as error:
        raise SwampError(f"{where}: {text!r} is no number; {_HOW}.") from error
    if not math.isfinite(value) or (kind is int and not value.is_integer()):
        raise SwampError(f"{where}: {text} must be a {'whole' if kind is int else 'finite'} number.")
    return int(value) if kind is int else value


def _kind(field: str) -> Any:
    """Type of the values of a field; of its items for a list of numbers, which may also be auto."""
    kind: Any = RunConfig
    for part in field.split("."):
        kind = get_type_hints(kind)[part]
    while get_origin(kind) is not Literal and kind not in (bool, int, float, str):
        kind = get_args(kind)[0]
    return kind


def _values_of(kind: Any) -> str:
    return ", ".join(map(str, get_args(kind))) or ("true and false" if kind is bool else "text")


def _flag(field: str) -> str:
    return field.rpartition(".")[2].replace("_", "-")


def shown_value(value: OptionValue) -> str:
    """The value of an option, with six significant digits at most."""
    return str(value).lower() if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)


_SAME_PROBLEM = "trials would no longer solve the same problem; tune each by itself"
_SAME_SPARSITY = "all trials must end with the same number of the same weights"
_FIXED = {
    r"recipe|task|model|data[.](?!augment).*": _SAME_PROBLEM,
    r"plan[.]seed": "a seed is luck and not a setting; tune again with another --seed to see how much luck there is",
    r"plan[.]method": "each method is tuned by itself: --methods imp swamp",
    r"plan[.](sparsity|densities|structure|include|exclude|prune_output_layer)": _SAME_SPARSITY,
    r"plan[.](max_particles|wave|least_gain)": "it acts with particles auto, which costs what it finds",
    r"training[.]epochs|plan[.](retrain_epochs|last_epochs)": "all trials have equal cost, from which epochs follow; "
    "search particles, prune-fraction or cycles",
    r"plan[.](on_divergence|barrier_points|barrier_threshold|evaluation_examples)": "it does not change a training",
    r"[a-z_]+": "it does not change the result",
}
"""Pattern of dotted fields -> why they cannot be searched."""


def _why_fixed(field: str) -> str:
    return next((why for pattern, why in _FIXED.items() if re.fullmatch(pattern, field)), "")


def _default(field: str, config: RunConfig, where: str) -> str:
    text = _default_text(field, config)
    if not text:
        raise SwampError(f"{where}: {_flag(field)} has no default range: {_HOW.rpartition(', or ')[0]}.")
    return text


def _default_text(field: str, config: RunConfig) -> str:
    if field in _DEFAULTS:
        return _DEFAULTS[field](config)
    kind = _kind(field)
    return "false,true" if kind is bool else ",".join(get_args(kind)) if get_origin(kind) is Literal else ""


def _around(value: float, below: float, above: float) -> str:
    return f"{value / below:.3g}..{value * above:.3g}:log"


def _particles(epochs: int) -> str:
    """Numbers of particles that divide the epochs of all particles of a cycle well: cost is kept by fewer epochs."""
    fitting = (count for count in (1, 2, 4, 8) if abs(count * round(epochs / count) - epochs) <= 0.05 * epochs)
    return ",".join(map(str, fitting))


_DEFAULTS: dict[str, Callable[[RunConfig], str]] = {
    "training.lr": lambda config: _around(config.training.lr, 10, 3),
    "training.swa_lr": lambda _: "0.05..1:log",
    "training.swa_fraction": lambda _: "0.1..0.75",
    "training.weight_decay": lambda config: _around(config.training.weight_decay or 1e-4, 10, 10),
    "training.momentum": lambda _: "0.8,0.9,0.95,0.98",
    "training.batch_size": lambda config: ",".join(
        str(round(factor * config.training.batch_size)) for factor in (0.5, 1, 2)
    ),
    "training.warmup": lambda config: f"0..{config.training.epochs / 4:g}",
    "training.label_smoothing": lambda _: "0..0.2",
    "training.clip": lambda _: "0.1..10:log",
    "training.sam": lambda _: "0.01..0.5:log",
    "training.ema": lambda _: "0.9,0.99,0.999",
    "plan.particles": lambda config: _particles(config.plan.most_particles * config.training.epochs),
    "plan.prune_fraction": lambda _: "0.1..0.6",
    "plan.ticket_epochs": lambda config: f"0..{config.training.epochs / 2:g}",
    "plan.allocation": lambda _: "global,uniform,erk",
    "plan.retrain": lambda _: "slr,lrw,ft,clr,llr,allr",
    "plan.dynamic.drop_fraction": lambda _: "0.1..0.5",
    "plan.dynamic.dst_stop": lambda _: "0.5..1",
    "plan.dynamic.update_interval": lambda config: _around(config.plan.dynamic.update_interval, 4, 4),
}
"""Field -> its range where only its name is given, as text. Other fields: all values, if they can be listed."""
