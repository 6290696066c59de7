"""Consoles that print text as it is: brackets, colons and numbers have no meaning of their own."""

from typing import Any

from rich.console import Console
from rich.text import Text


def plain_console(**options: Any) -> Console:
    """A console on which "[...]" is text, not markup. options: of `rich.console.Console`, e.g. stderr=True."""
    return Console(markup=False, highlight=False, emoji=False, **options)


def draws_bars(console: Console) -> bool:
    """Whether bars can be redrawn on it: a terminal, but no log where colours are forced, as in CI."""
    return console.is_interactive and console.file.isatty()


def labelled(label: str, style: str, text: str) -> Text:
    """A line with a coloured label before it, e.g. "warning:"."""
    return Text.assemble((label, style), " ", text)
