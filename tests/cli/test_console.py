"""What the command line prints is printed as it is: no bracket of a message or of a user's name is lost."""

import ast
import io
import re
from pathlib import Path

import pytest

import swamp
from swamp.cli import main, session
from swamp.cli.entry import exit_codes
from swamp.console import labelled, plain_console
from swamp.errors import SwampError

SOURCES = sorted(Path(swamp.__file__).parent.rglob("*.py"))


@pytest.mark.slow
def test_every_text_with_brackets_is_printed_whole():
    # Every text of the source in which rich could find markup or an emoji.
    constants = (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text())))
    texts = {node.value for node in constants if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found = sorted(text for text in texts if re.search(r"\[[a-z/@#]|:[a-z]+:", text))
    assert any("swamp[minilm]" in text for text in found)
    for text in found:
        console = plain_console(file=io.StringIO(), width=10_000)
        console.print(text, soft_wrap=True)
        console.print(labelled("swamp:", "bold red", text), soft_wrap=True)
        assert console.file.getvalue() == f"{text}\nswamp: {text}\n"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_module_prints_by_another_console(path):
    # A console or a column of rich's own reads "[...]" as markup.
    source = path.read_text()
    assert path.name == "console.py" or not re.search(r"(?<!plain_)\bConsole\(|rich import print|markup=True", source)
    assert all("markup=False" in call for call in re.findall(r"TextColumn\(.*", source))


@pytest.mark.parametrize(
    "text", ["pip install 'swamp[minilm]'", "runs/[a-z]: [/red] is no folder", "a [bold]name[/bold]"]
)
def test_an_error_is_printed_with_its_brackets(text, capsys):
    with pytest.raises(SystemExit) as ended, exit_codes():
        raise SwampError(text)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"swamp: {text}\n"


def test_the_name_of_a_user_keeps_its_brackets(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--task", "[red]digits"])
    assert "[red]digits" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_warnings_go_beside_the_bars_only_if_both_are_terminals(monkeypatch):
    bars = plain_console(file=Terminal())
    log = plain_console(file=io.StringIO())
    assert session.beside(bars) is session.Err
    monkeypatch.setattr(session, "Err", plain_console(file=Terminal()))
    assert session.beside(bars) is bars
    assert session.beside(log) is session.Err
