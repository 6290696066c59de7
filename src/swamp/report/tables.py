"""Tables: the tables of a comparison, and tables as console output, Markdown and CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from swamp.errors import plural
from swamp.report.comparison import BEST, At, Comparison, CyclePoint, SparsityRow
from swamp.report.cost import CostRank
from swamp.report.statistics import Paired, ReportMetric

TableCell = str | Text
Column = tuple[str, Sequence[TableCell]]
"""A heading and the cells below it."""
_PADDING = 1
_GAP = _PADDING + 1  # with the column separator of rich; one more at the edges of the table


@dataclass(frozen=True)
class Table:
    """Cells as text. The first `keys` columns name the rows; they are repeated in each part of a wide table."""

    title: str
    headings: tuple[str, ...]
    """They may have several lines."""
    rows: tuple[tuple[TableCell, ...], ...]
    below: str = ""
    keys: int = 1

    @classmethod
    def of_columns(cls, title: str, columns: Sequence[Column], below: str = "", keys: int = 1) -> "Table":
        """Build a table column by column."""
        cells = zip(*(cells for _, cells in columns), strict=True)
        return cls(title, tuple(heading for heading, _ in columns), tuple(cells), below, keys)


def sparsity_column(densities: Sequence[float]) -> Column:
    """The key column of a table with a row per sparsity."""
    return "sparse\n%", [f"{100 * (1 - density):.2f}" for density in densities]


def comparison_tables(comparison: Comparison, *, at: At = "sparsity", methods_down: bool = True) -> list[Table]:
    """The tables of a comparison, without its costs. methods_down: a row per method, else a row per sparsity."""
    if at != "sparsity":
        return [_ranking_table(comparison, row) for row in comparison.rows if row.cost_ranking]
    tables = [_results_table(comparison, methods_down)]
    if len(comparison.labels) > 1:
        tables.append(_differences_table(comparison, methods_down))
    return tables


def cost_table(comparison: Comparison) -> Table:
    """The cost of each method's whole run, and of its last model alone."""
    unit, costs = comparison.unit, comparison.costs.values()
    columns: list[Column] = [
        ("method", list(comparison.costs)),
        ("N", [f"{cost.particles}" for cost in costs]),
        ("cycles", ["-".join(dict.fromkeys(map(str, cost.cycles))) for cost in costs]),
        ("steps", [_count(cost.steps) for cost in costs]),
        ("samples", [_count(cost.samples) for cost in costs]),
        ("time", [_time(cost.seconds) for cost in costs]),
        (unit.heading, [unit.show(unit.of(cost)) for cost in costs]),
        (f"{unit.heading}\nlast model", [unit.show(unit.of(cost.last)) for cost in costs]),
    ]
    below = (
        "N: particles. For a method that trains from the start for each sparsity, the last model is one training.\n"
        f"{unit.meaning}"
    )
    return Table.of_columns("Cost of a whole run, and of its last model, mean over seeds", columns, below)


def comparisons_note(differences: Sequence[Paired], metric: ReportMetric) -> str:
    """How many paired comparisons a table makes, and how often an interval misses 0 by chance."""
    lower = " Lower is better." if metric.lower else ""
    if all(difference.n < 2 for difference in differences):
        return f"Two common seeds are needed for an interval.{lower}"
    return (
        f"{plural(len(differences), 'comparison')} made, without correction for their number: if all differences were "
        f"0, about one interval in 20 would miss 0 by chance.{lower}"
    )


def difference_cell(metric: ReportMetric, difference: Paired | None) -> TableCell:
    """A paired difference with its interval and seeds; green if significantly better, red if significantly worse."""
    if difference is None:
        return "–"
    style = ("green" if (difference.mean < 0) == metric.lower else "red") if difference.excludes_zero else ""
    return Text(f"{metric.show_interval(difference.mean, difference.half, sign=True)} ({difference.n})", style=style)


def print_comparison(comparison: Comparison, console: Console, *, at: At = "sparsity") -> None:
    """Print the tables of a comparison, its costs and its notes.

    Methods are in rows if there are more methods than sparsities, or if the table then needs fewer parts on this
    console.
    """
    tables = comparison_tables(comparison, at=at, methods_down=False)
    if at == "sparsity":
        down = comparison_tables(comparison, methods_down=True)
        more = len(comparison.labels) > len(comparison.rows)
        tables = down if more or len(_parts(tables[0], console.width)) > len(_parts(down[0], console.width)) else tables
    for table in (*tables, cost_table(comparison)):
        print_table(table, console)
    for note in comparison.notes:
        console.print(Text(f"Note: {note}\n", style="dim"))


def print_table(table: Table, console: Console) -> None:
    """Print one table, in as many parts as this console needs."""
    console.print(Text(table.title, style="bold"))
    for part in _parts(table, console.width):
        drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, _PADDING, 0, 0))
        for index in (*range(table.keys), *part):
            name = index == 0 and table.keys == 1
            drawn.add_column(
                Text(table.headings[index]),
                justify="left" if name else "right",
                overflow="fold",
                max_width=min(_width(table, index), console.width // 3) if name else None,
            )
        for row in table.rows:
            drawn.add_row(*(_text(row[index]) for index in (*range(table.keys), *part)))
        console.print(drawn)
    console.print(Text(f"{table.below}\n", style="dim"))


def comparison_markdown(comparison: Comparison, *, at: At = "sparsity") -> str:
    """The comparison as GitHub Markdown, methods in rows; the best mean is bold and has its mark."""
    tables = (*comparison_tables(comparison, at=at), cost_table(comparison))
    return "\n".join([*map(markdown, tables), *(f"Note: {_escaped(note)}\n" for note in comparison.notes)])


def markdown(table: Table) -> str:
    """One table as GitHub Markdown, with its title and the text below it."""
    lines = [
        f"**{_escaped(table.title)}**\n",
        _line([_escaped(heading).replace("\n", "<br>") for heading in table.headings]),
        _line(["---" if index < table.keys else "---:" for index in range(len(table.headings))]),
        *(_line([_markdown_cell(cell) for cell in row]) for row in table.rows),
    ]
    return "\n".join(lines) + "\n\n" + _escaped(table.below).replace("\n", "  \n") + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """The comparison in long format: a line for each run and cycle."""
    metrics = list(dict.fromkeys(name for point in comparison.points for name in point.metrics))
    text = io.StringIO()
    rows = [_csv_row(point, metrics) for point in comparison.points]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _results_table(comparison: Comparison, methods_down: bool) -> Table:
    """The mean with its interval for each method and sparsity; `*`: the best; `=`: not told apart from the best."""
    title = f"{comparison.task}, {comparison.model}: {comparison.heading}, mean ± 95 % t-interval over seeds"
    columns, keys = _by_sparsity(comparison, comparison.labels, _result_cell, methods_down)
    below = _results_note(comparison)
    if methods_down:
        last, unit = comparison.rows[-1], comparison.unit
        found = [last.cells.get(label) for label in comparison.labels]
        cells = [unit.show(unit.of(cell.total) if cell else None) for cell in found]
        columns.append((f"{unit.heading}\nat {100 * last.sparsity:.2f}", cells))
        below = f"{below}\n{unit.meaning}"
    return Table.of_columns(title, columns, below, keys)


def _differences_table(comparison: Comparison, methods_down: bool) -> Table:
    """Paired differences to the baseline, or to each sparsity's best."""
    metric = comparison.report_metric
    others = [label for label in comparison.labels if label != comparison.baseline]
    unit = f"{comparison.split} {metric.name}" + (", in points" if metric.percent else "")
    to = "each sparsity's best" if comparison.baseline == BEST else comparison.baseline
    title = f"Difference to {to}, paired by seed: {unit} (seeds)"
    columns, keys = _by_sparsity(comparison, others, _difference_to_baseline, methods_down)
    return Table.of_columns(title, columns, comparisons_note(comparison.differences, metric), keys)


def _ranking_table(comparison: Comparison, row: SparsityRow) -> Table:
    """The methods of one sparsity by cost, each compared with the best method that costs no more."""
    metric, ranks, unit = comparison.report_metric, row.cost_ranking, comparison.unit
    means = [metric.show_interval(row.cells[rank.label].mean, row.cells[rank.label].half) for rank in ranks]
    compared = [rank.difference for rank in ranks if rank.difference is not None]
    columns: list[Column] = [
        ("method", [rank.label for rank in ranks]),
        ("seeds", [str(row.cells[rank.label].n) for rank in ranks]),
        (unit.heading, [unit.show(rank.cost) for rank in ranks]),
        (metric.heading, [_marked(mean, "*" if rank.front else "") for mean, rank in zip(means, ranks, strict=True)]),
        ("against the best\nat no more cost", [difference_cell(metric, rank.difference) for rank in ranks]),
        ("which is", [rank.against or "–" for rank in ranks]),
    ]
    return Table.of_columns(
        f"{100 * row.sparsity:.2f} % sparse ({100 * (1 - row.density_all):.2f} % of all): methods by cost, "
        f"{comparison.heading} ± 95 % t-interval",
        columns,
        "*: on the front, no method at up to 1.05 times the cost has a better mean over the seeds that both have. "
        f"Differences are paired by seed (seeds).{_unpaired_note(ranks)}\n{comparisons_note(compared, metric)}\n"
        f"{unit.meaning}",
    )


def _unpaired_note(ranks: Sequence[CostRank]) -> str:
    pairs = [f"{rank.label} with {', '.join(rank.unpaired)}" for rank in ranks if rank.unpaired]
    return f" No common seed, not compared: {'; '.join(pairs)}." if pairs else ""


def _by_sparsity(
    comparison: Comparison,
    labels: Sequence[str],
    cell_of: Callable[[Comparison, SparsityRow, str], TableCell],
    methods_down: bool,
) -> tuple[list[Column], int]:
    """The columns of a table of methods and sparsities, and how many of them are keys."""
    rows = comparison.rows
    sparse = [(f"{100 * row.sparsity:.2f}", f"{100 * (1 - row.density_all):.2f}") for row in rows]
    if methods_down:
        columns: list[Column] = [("sparse %\n(of all %)", labels)]
        for row, (sparsity, of_all) in zip(rows, sparse, strict=True):
            columns.append((f"{sparsity}\n({of_all})", [cell_of(comparison, row, label) for label in labels]))
        return columns, 1
    columns = [("sparse\n%", [own for own, _ in sparse]), ("of all\n%", [of_all for _, of_all in sparse])]
    for label in labels:
        columns.append((label.replace(", ", ",\n"), [cell_of(comparison, row, label) for row in rows]))
    return columns, 2


def _result_cell(comparison: Comparison, row: SparsityRow, label: str) -> TableCell:
    if label not in row.cells:
        return "–  "
    cell = row.cells[label]
    text = comparison.report_metric.show_interval(cell.mean, cell.half)
    if cell.n < comparison.costs[label].seeds:
        text += f" ({cell.n})"
    return _marked(text, "*" if label in row.best else "=" if label in row.tied else "")


def _marked(text: str, mark: str) -> Text:
    return Text(f"{text} {mark or ' '}", style="bold" if mark == "*" else "")


def _difference_to_baseline(comparison: Comparison, row: SparsityRow, label: str) -> TableCell:
    if comparison.baseline == BEST and label in row.best[:1]:
        return "best"
    return difference_cell(comparison.report_metric, row.differences.get(label))


def _results_note(comparison: Comparison) -> str:
    counts = {label: cost.seeds for label, cost in comparison.costs.items()}
    same = len(set(counts.values())) == 1
    listed = "; ".join(f"{label}: {count}" for label, count in counts.items())
    seeds = f"n = {plural(next(iter(counts.values())), 'seed')} each" if same else f"n seeds: {listed}"
    fewer = any(cell.n < counts[label] for row in comparison.rows for label, cell in row.cells.items())
    notes = [f"{seeds}{', (n) where fewer' if fewer else ''}."]
    if len(comparison.labels) > 1:
        notes += [
            "Not measured: –. *: best of its sparsity, compared with each other method over the seeds that both have.",
            _ties_note(comparison),
        ]
    sparsity = "Sparsity is the share of zeros in the prunable weights; of all: in all parameters."
    return f"{' '.join(notes)}\n{sparsity}"


def _ties_note(comparison: Comparison) -> str:
    pairs = [difference for row in comparison.rows for difference in row.to_best.values()]
    unsure = sum(difference.n < 2 for difference in pairs)
    if len(pairs) == unsure:
        return "Two common seeds are needed to test a difference to the best."
    few = f" {unsure} more had too few common seeds for a test." if unsure else ""
    return (
        f"= : the paired 95 % interval of the difference to the best includes 0 "
        f"({plural(len(pairs) - unsure, 'comparison')} made, without correction for their number).{few}"
    )


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:,.2f} M"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _parts(table: Table, room: int) -> list[list[int]]:
    """The indices of the columns in groups that fit beside the keys."""
    keys = sum(_GAP + min(_width(table, index), room // 3) for index in range(table.keys))
    parts: list[list[int]] = []
    left = 0
    for index in range(table.keys, len(table.headings)):
        width = _GAP + _width(table, index)
        if not parts or width > left:
            parts.append([])
            left = room - 1 - keys
        parts[-1].append(index)
        left -= width
    return parts


def _width(table: Table, index: int) -> int:
    return max(*map(len, table.headings[index].split("\n")), *(_text(row[index]).cell_len for row in table.rows), 0)


def _text(cell: TableCell) -> Text:
    return Text(cell) if isinstance(cell, str) else cell


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: TableCell) -> str:
    text = _escaped(str(cell).strip())
    return f"**{text}**" if isinstance(cell, Text) and cell.style == "bold" else text


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]$])", r"\\\1", text)


def _csv_row(point: CyclePoint, metrics: Sequence[str]) -> dict[str, object]:
    return {
        "label": point.label,
        "seed": point.seed,
        "cycle": point.cycle,
        "sparsity": 1 - point.density,
        "density": point.density,
        "density_all": point.density_all,
        **{name: point.metrics.get(name) for name in metrics},
        "particles": point.n,
        "barrier": point.barrier,
        "steps": point.steps,
        "samples": point.samples,
        "flops": point.flops,
        "seconds": point.seconds,
        **{f"total_{name}": value for name, value in asdict(point.total).items()},
    }
