"""Numbers that a page repeats are those of the page that measured them."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
MEASURED = re.split(r"^## .*$", (DOCS / "explanation" / "results_baselines.md").read_text(), flags=re.MULTILINE)[1:3]


def numbers(cell: str) -> list[float]:
    return [float(one) for one in re.findall(r"\d+\.?\d*", cell)]


def rows(text: str) -> dict[str, list[str]]:
    """Method -> the other cells of its row."""
    found = re.findall(r"^\| `([a-z0-9+-]+)`[^|]*\|(.*)\|$", text, flags=re.MULTILINE)
    return {name: cells.split("|") for name, cells in found}


def test_the_page_on_budgets_has_the_accuracies_and_costs_of_both_studies():
    page = (DOCS / "howto" / "which_method.md").read_text()
    shown = re.findall(r"^\|[^|]*\| `(?:--method )?([a-z0-9+-]+)`[^|]*\|(.*)\|$", page, flags=re.MULTILINE)
    assert len(shown) == 12
    for method, cells in shown:
        mnist, mnist_cost, fashion, fashion_cost = (numbers(cell) for cell in cells.split("|"))
        for text, accuracy, cost in zip(MEASURED, (mnist, fashion), (mnist_cost, fashion_cost), strict=True):
            *_, at_95, _, measured_cost = rows(text)[method]
            assert accuracy == pytest.approx(numbers(at_95)[:2], abs=0.051)
            assert cost == numbers(measured_cost)
