"""The code of the README runs, and prints what the README shows."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "README.md").read_text()
NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.slow
def test_the_first_example_prints_what_the_readme_shows(capsys):
    exec(block("python"), {})
    printed, shown = capsys.readouterr().out, block("text")
    assert NUMBER.sub("N", printed) == NUMBER.sub("N", shown)
    # Other processors round differently: a few of the 297 test examples, each 0.0034 of the accuracy.
    values = [[float(one.replace(",", "")) for one in NUMBER.findall(text)] for text in (printed, shown)]
    assert values[0] == pytest.approx(values[1], rel=0.01, abs=0.02)
