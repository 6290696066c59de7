"""A comparison on the console: results, paired differences, cost. Nothing is said by colour alone."""

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swamp.report.comparison import Comparison, Row
from swamp.report.metric import Metric

_SPARSITY_WIDTH = 18  # two columns with their padding, and the edges of the table


def print_table(comparison: Comparison, console: Console) -> None:
    """Print results, differences to the baseline and cost, split over several tables where the console is narrow."""
    metric = Metric(comparison.metric)
    what = f"{comparison.split} {metric.heading}"
    console.print(
        Text(f"{comparison.task}, {comparison.model}: {what}, mean ± 95 % t-interval over seeds", style="bold")
    )
    _print_columns(comparison, comparison.labels, _result, console)
    _say(console, _seeds(comparison))
    others = [label for label in comparison.labels if label != comparison.baseline]
    if others:
        unit = f"{comparison.split} {metric.name}" + (", in points" if metric.percent else "")
        console.print(Text(f"Difference to {comparison.baseline}, paired by seed: {unit} (seeds)", style="bold"))
        _print_columns(comparison, others, _difference, console)
        _say(console, _comparisons(comparison))
    console.print(Text("Cost of a whole run, mean over seeds", style="bold"))
    console.print(_costs(comparison))
    for note in comparison.notes:
        _say(console, f"Note: {note}")


def _print_columns(
    comparison: Comparison, labels: Sequence[str], show: Callable[[Comparison, Row, str], Text], console: Console
) -> None:
    columns = {label: [show(comparison, row, label) for row in comparison.rows] for label in labels}
    for group in _groups({label: _width(label, cells) for label, cells in columns.items()}, console.width):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("sparse\n%", justify="right", no_wrap=True)
        table.add_column("of all\n%", justify="right", no_wrap=True)
        for label in group:
            table.add_column(Text(_heading(label)), justify="right", overflow="fold")
        for index, row in enumerate(comparison.rows):
            sparsity, of_all = f"{100 * row.sparsity:.2f}", f"{100 * (1 - row.density_all):.2f}"
            table.add_row(sparsity, of_all, *(columns[label][index] for label in group))
        console.print(table)


def _heading(label: str) -> str:
    return label.replace(", ", ",\n")


def _width(label: str, cells: Sequence[Text]) -> int:
    return 2 + max(*map(len, _heading(label).split("\n")), *(cell.cell_len for cell in cells))


def _groups(widths: dict[str, int], room: int) -> list[list[str]]:
    groups: list[list[str]] = []
    left = 0
    for label, width in widths.items():
        if not groups or width > left:
            groups.append([])
            left = room - _SPARSITY_WIDTH
        groups[-1].append(label)
        left -= width
    return groups


def _result(comparison: Comparison, row: Row, label: str) -> Text:
    if label not in row.cells:
        return Text("–  ")
    cell = row.cells[label]
    text = Metric(comparison.metric).show_interval(cell.mean, cell.half)
    if cell.n < comparison.costs[label].seeds:
        text += f" ({cell.n})"
    return Text(f"{text} *", style="bold") if label in row.best else Text(f"{text}  ")


def _difference(comparison: Comparison, row: Row, label: str) -> Text:
    if label not in row.differences:
        return Text("–")
    metric, difference = Metric(comparison.metric), row.differences[label]
    better = (difference.mean < 0) == metric.lower
    style = ("green" if better else "red") if difference.excludes_zero else ""
    return Text(f"{metric.show_interval(difference.mean, difference.half, sign=True)} ({difference.n})", style=style)


def _seeds(comparison: Comparison) -> str:
    counts = {label: cost.seeds for label, cost in comparison.costs.items()}
    same = len(set(counts.values())) == 1
    each = f"n = {next(iter(counts.values()))} seeds each" if same else _list_counts(counts)
    fewer = any(cell.n < counts[label] for row in comparison.rows for label, cell in row.cells.items())
    return (
        f"{each}{', (n) where fewer' if fewer else ''}. Best mean of a row: *, not measured: –.\n"
        "Sparsity is that of the prunable weights; of all: zeros in all parameters."
    )


def _list_counts(counts: dict[str, int]) -> str:
    return "n seeds: " + "; ".join(f"{label}: {count}" for label, count in counts.items())


def _comparisons(comparison: Comparison) -> str:
    count = comparison.comparisons
    lower = " Lower is better." if Metric(comparison.metric).lower else ""
    return (
        f"{count} comparison{'' if count == 1 else 's'} made, not corrected for their number: of 20 true zeros, "
        f"about one interval misses 0 by chance.{lower}"
    )


def _costs(comparison: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("method", overflow="fold")
    for heading in ("particles", "cycles", "steps", "samples", "time", "× steps"):
        table.add_column(heading, justify="right", no_wrap=True)
    base = comparison.costs[comparison.baseline].steps
    for label, cost in comparison.costs.items():
        fewest, most = cost.cycles
        table.add_row(
            Text(label),
            str(cost.particles),
            str(most) if fewest == most else f"{fewest}-{most}",
            f"{cost.steps:,.0f}",
            f"{cost.samples:,.0f}",
            _time(cost.seconds),
            f"{cost.steps / base:.2f}" if base else "–",
        )
    return table


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _say(console: Console, text: str) -> None:
    console.print(Text(text, style="dim"))
    console.print()
