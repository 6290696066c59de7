"""A comparison on the console."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swamp.report.comparison import At, Comparison
from swamp.report.sheet import Column, Sheet, costs, differences, ladders, results

_PADDING = 1
_GAP = _PADDING + 1  # and what rich puts between columns; at the edges of the table one more


def print_table(comparison: Comparison, console: Console, *, at: At = "sparsity") -> None:
    """Print results and differences, or at equal cost a ladder for each sparsity; then the cost and the notes.

    Methods stand in rows where they are more than the sparsities, or where that takes fewer parts on this console.
    """
    if at == "equal-cost":
        for sheet in ladders(comparison):
            print_sheet(sheet, console)
    else:
        _print_results(comparison, console)
    print_sheet(costs(comparison), console)
    for note in comparison.notes:
        console.print(Text(f"Note: {note}\n", style="dim"))


def _print_results(comparison: Comparison, console: Console) -> None:
    across, down = (results(comparison, methods_down=down) for down in (False, True))
    methods_down = len(comparison.labels) > len(comparison.rows)
    methods_down = methods_down or len(_parts(across, console.width)) > len(_parts(down, console.width))
    print_sheet(down if methods_down else across, console)
    if len(comparison.labels) > 1:
        print_sheet(differences(comparison, methods_down=methods_down), console)


def print_sheet(sheet: Sheet, console: Console) -> None:
    """Print one table, in as many parts as this console needs."""
    console.print(Text(sheet.title, style="bold"))
    for part in _parts(sheet, console.width):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, _PADDING, 0, 0))
        for column in sheet.keys:
            named = len(sheet.keys) == 1
            width = min(_width(column), console.width // 3) if named else None
            table.add_column(
                Text(column.heading), justify="left" if named else "right", overflow="fold", max_width=width
            )
        for column in part:
            table.add_column(Text(column.heading), justify="right", overflow="fold")
        for cells in zip(*(column.cells for column in (*sheet.keys, *part)), strict=True):
            table.add_row(*cells)
        console.print(table)
    console.print(Text(f"{sheet.below}\n", style="dim"))


def _parts(sheet: Sheet, room: int) -> list[list[Column]]:
    """The columns in groups of which each fits beside the keys."""
    keys = sum(_GAP + min(_width(column), room // 3) for column in sheet.keys)
    parts: list[list[Column]] = []
    left = 0
    for column in sheet.columns:
        width = _GAP + _width(column)
        if not parts or width > left:
            parts.append([])
            left = room - 1 - keys
        parts[-1].append(column)
        left -= width
    return parts


def _width(column: Column) -> int:
    return max(*map(len, column.heading.split("\n")), *(cell.cell_len for cell in column.cells))
