"""A comparison as GitHub Markdown, for documents: methods in rows, sparsities in columns."""

import re
from collections.abc import Sequence

from rich.text import Text

from swamp.report.comparison import At, Comparison
from swamp.report.sheet import Sheet, costs, differences, ladders, results


def markdown(comparison: Comparison, *, at: At = "sparsity") -> str:
    """The tables that the console shows, whatever their width; the best mean is bold and carries its mark."""
    if at == "equal-cost":
        sheets = ladders(comparison)
    else:
        sheets = [results(comparison, methods_down=True)]
        if len(comparison.labels) > 1:
            sheets.append(differences(comparison, methods_down=True))
    notes = [f"Note: {_escaped(note)}\n" for note in comparison.notes]
    return "\n".join([*map(sheet_of, [*sheets, costs(comparison)]), *notes])


def sheet_of(sheet: Sheet) -> str:
    """One table with its title and what stands below it."""
    columns = [*sheet.keys, *sheet.columns]
    aligned = [*("---" for _ in sheet.keys), *("---:" for _ in sheet.columns)]
    lines = [
        f"**{_escaped(sheet.title)}**\n",
        _line([_escaped(column.heading).replace("\n", "<br>") for column in columns]),
        _line(aligned),
        *(_line([_cell(cell) for cell in cells]) for cells in zip(*(c.cells for c in columns), strict=True)),
    ]
    return "\n".join(lines) + "\n\n" + _escaped(sheet.below).replace("\n", "  \n") + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Text) -> str:
    text = _escaped(cell.plain.strip())
    return f"**{text}**" if cell.style == "bold" else text


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]$])", r"\\\1", text)
