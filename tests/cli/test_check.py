"""Arguments are refused in one line, by the kinds that the help shows."""

from importlib import import_module

import pytest

from swamp.cli.check import check_arguments
from swamp.cli.entry import COMMANDS
from swamp.cli.help import command_options
from swamp.errors import SwampError
from swamp.recipes import configuration

from .command import swamp


def options_of(command):
    kind = getattr(import_module(f"swamp.cli.{COMMANDS[command][0]}"), f"{command.capitalize()}Args")
    recipe = command in ("run", "ticket", "transfer", "tune")
    return list(command_options(kind(configuration("", "", "")) if recipe else kind))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_refuses_what_its_help_does_not_offer(command):
    options = options_of(command)
    needed = [one.kind.split("|")[0] for one in options if not one.name.startswith("--")]
    for option in options:
        if not option.name.startswith("--"):
            continue
        kinds = option.kind.removesuffix(" ...").split("|")
        if not option.kind:
            with pytest.raises(SwampError, match=f"^{option.name} takes no value"):
                check_arguments([*needed, f"{option.name}=yes"], "swamp x", options)
            continue
        with pytest.raises(SwampError, match=f"^{option.name} needs a value: "):
            check_arguments([*needed, option.name], "swamp x", options)
        if not {"TEXT", "PATH"} & {*kinds}:
            with pytest.raises(SwampError, match=rf"^{option.name} must be .*, got '\?'"):
                check_arguments([*needed, option.name, "?"], "swamp x", options)
        one = {"INT": "3", "FLOAT": "-0.5", "TEXT": "a", "PATH": "a"}.get(kinds[0], kinds[0])
        check_arguments([*needed, option.name, one], "swamp x", options)
        check_arguments([*needed, f"{option.name}={one}"], "swamp x", options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "digits-mlp", "--epochs", "many"], "--epochs must be a whole number, got 'many'."),
        (["run", "digits-mlp", "--epochs", "2.0"], "--epochs must be a whole number, got '2.0'."),
        (["run", "digits-mlp", "--lr", "--seed", "1"], "--lr needs a value: a finite number."),
        (["ticket", "--latest-epochs", "inf"], "--latest-epochs must be a finite number, got 'inf'."),
        (["benchmark", "x", "--seconds", "nan"], "--seconds must be a finite number, got 'nan'."),
        (["benchmark", "x", "--threads", "100000"], "threads must be from 0 to 1024, got 100000."),
        (["run", "digits-mlp", "--particles", "2", "atuo"], "a whole number or auto, got 'atuo'. Did you mean auto?"),
        (["run", "digits-mlp", "other"], "unexpected argument 'other'. Usage: swamp run [RECIPE] [OPTIONS]"),
        (["run", "--lr-after-rewind", "restat"], "one of restart, advance, got 'restat'. Did you mean restart?"),
        (["list", "method"], "got 'method'. Did you mean methods?"),
        (["list"], "WHAT is missing. Usage: swamp list WHAT [OPTIONS]"),
        (["resume", "a", "b"], "unexpected argument 'b'. Usage: swamp resume RUN [OPTIONS]"),
        (["resume", "a", "--quiet=True"], "--quiet takes no value, got 'True': write --quiet or --no-quiet."),
        (["export", "x", "--quite"], "unknown option --quite. Did you mean"),
        (["export", "x", "-q"], "unknown option -q. See --help."),
        (["compare", "x", "-o"], "--out needs a value: a path."),
    ],
)
def test_one_line_says_what_was_given_and_what_is_expected(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert swamp(*arguments) == 2
    printed = capsys.readouterr()
    assert message in " ".join(printed.err.split())
    assert not printed.out
    assert not list(tmp_path.iterdir())
