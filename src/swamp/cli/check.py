"""Check the arguments of a command before they are parsed: one message says what was given, and what is expected."""

import difflib
import math
from collections.abc import Mapping, Sequence

from swamp.cli.help import CommandOption, usage_of
from swamp.errors import SwampError
from swamp.fields import RENAMED

_EXPECTED = {"INT": "a whole number", "FLOAT": "a finite number", "TEXT": "a text", "PATH": "a path"}


def check_arguments(arguments: Sequence[str], command: str, options: Sequence[CommandOption]) -> None:
    """Raise SwampError for an unknown option, a missing, superfluous or impossible value.

    Args:
        arguments: Arguments after the command.
        command: See `print_help`.
        options: Of the command, with its arguments without a name.
    """
    named = {option.name: option for option in options if option.name.startswith("--")}
    named |= {f"--no-{name[2:]}": option for name, option in named.items() if not option.kind}
    unnamed = [option for option in options if not option.name.startswith("--")]
    rest, alone = list(arguments), list[str]()
    while rest:
        word = rest.pop(0)
        if word.startswith("--tyro-"):  # what shells ask for completion
            return
        if not _is_option(word):
            alone.append(word)
            continue
        name, given, inline = word.partition("=")
        option = _named(name.replace("_", "-"), named)
        if not option.kind:
            if given:
                raise SwampError(f"{name} takes no value, got {inline!r}: write {name} or --no-{option.name[2:]}.")
            continue
        values = [inline] if given else _values(rest, several=option.kind.endswith(" ..."))
        if not given:
            del rest[: len(values)]
        _check_values(name, values, option.kind)
    several = any(option.kind.endswith(" ...") for option in unnamed)
    for option, value in zip(unnamed, alone, strict=False):
        _check_values(option.name, [value], option.kind)
    if len(alone) > len(unnamed) and not several:
        raise SwampError(f"unexpected argument {alone[len(unnamed)]!r}. Usage: {usage_of(command, options)}")
    if len(alone) < len(unnamed) and not several:
        raise SwampError(f"{unnamed[len(alone)].name} is missing. Usage: {usage_of(command, options)}")


def _is_option(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and not _is(word, "FLOAT")


def _named(name: str, named: Mapping[str, CommandOption]) -> CommandOption:
    if name in named:
        return named[name]
    renamed = RENAMED.get(name[2:].replace("-", "_"))
    if renamed and (option := f"--{renamed.replace('_', '-')}") in named:
        raise SwampError(f"unknown option {name}. Did you mean {option}?")
    near = difflib.get_close_matches(name, [one for one in named if not one.startswith("--no-")], n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else "See --help."
    raise SwampError(f"unknown option {name}. {hint}")


def _values(rest: Sequence[str], *, several: bool) -> list[str]:
    """The words up to the next option, at most one unless `several`."""
    until = next((at for at, word in enumerate(rest) if _is_option(word)), len(rest))
    return list(rest[: until if several else min(until, 1)])


def _check_values(name: str, values: Sequence[str], kind: str) -> None:
    """Raise SwampError unless there is a value, and each is of this kind; see `CommandOption.kind`."""
    kinds = kind.removesuffix(" ...").split("|")
    choices = [one for one in kinds if one not in _EXPECTED]
    expected = [_EXPECTED[one] for one in kinds if one in _EXPECTED]
    expected += [f"one of {', '.join(choices)}"] if len(choices) > 1 else choices
    if not values:
        raise SwampError(f"{name} needs a value: {' or '.join(expected)}.")
    for value in values:
        if not any(_is(value, one) for one in kinds):
            near = difflib.get_close_matches(value, choices, n=1, cutoff=0.6)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise SwampError(f"{name} must be {' or '.join(expected)}, got {value!r}.{hint}")


def _is(value: str, kind: str) -> bool:
    if kind not in ("INT", "FLOAT"):
        return kind in _EXPECTED or value == kind
    try:
        number = int(value) if kind == "INT" else float(value)
    except ValueError:
        return False
    return kind == "INT" or math.isfinite(number)
