import csv
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from swamp.report.comparison import At, Comparison, compare
from swamp.report.run_records import read_run
from swamp.report.tables import print_comparison
from swamp.report.write import write_comparison

from .comparisons import costly, example
from .runs import cycle, write_run


def text(comparison: Comparison, *, width: int = 80, colour: bool = False, at: At = "sparsity") -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None)
    print_comparison(comparison, console, at=at)
    return out.getvalue()


def test_accuracy_is_in_per_cent_and_differences_in_points_with_their_seeds(tmp_path: Path) -> None:
    shown = text(example(tmp_path))
    assert "91.00 ±2.48" in shown  # 90, 91, 92: t(0.975, 2) / sqrt(3) = 2.484
    assert "92.00 ±2.73 *" in shown  # 90.9, 92, 93.1: 1.1 times that, and the best of its row
    assert "+1.00 ±0.25 (3)" in shown  # 0.9, 1.0, 1.1
    assert "n = 3 seeds each" in shown
    assert "6 comparisons made" in shown


def test_nll_is_not_a_percentage_and_says_that_lower_is_better(tmp_path: Path) -> None:
    shown = text(example(tmp_path, metric="nll"))
    assert "0.0900 ±0.0248" in shown
    assert "-0.0100 ±0.0025 (3)" in shown
    assert "Lower is better" in shown


@pytest.mark.parametrize("methods", [1, 2, 7])
def test_every_line_fits_80_columns_and_nothing_is_lost(tmp_path: Path, methods: int) -> None:
    comparison = example(tmp_path, methods)
    shown = text(comparison)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert all(shown.count(label) >= 2 for label in comparison.labels)
    assert len(re.findall(r"\d ±\d", shown)) == 6 * methods + 6 * (methods - 1)  # no cell is broken over two lines


@pytest.mark.parametrize("width", range(60, 130, 6))
def test_a_mark_stays_on_the_line_of_its_number(tmp_path: Path, width: int) -> None:
    shown = text(example(tmp_path, 7), width=width)
    assert max(map(len, shown.splitlines())) <= width
    assert len(re.findall(r"±\d+\.\d\d \*", shown)) == 6


def test_a_label_longer_than_the_console_still_fits(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / str(k), [cycle(0, 1.0, 0.9)], training={"augment": letter * 90}))
        for k, letter in enumerate("ab")
    ]
    assert max(map(len, text(compare(runs)).splitlines())) <= 80


def test_green_and_red_mark_only_intervals_that_exclude_zero(tmp_path: Path) -> None:
    green, red = "\x1b[32m", "\x1b[31m"
    assert text(example(tmp_path / "gain"), colour=True).count(green) == 6
    worse = example(tmp_path / "nll", metric="nll")
    assert text(worse, colour=True).count(green) == 6
    assert red not in text(worse, colour=True)
    unsure = text(example(tmp_path / "one", seeds=1), colour=True)
    assert green not in unsure
    assert red not in unsure


def test_missing_cells_are_dashes(tmp_path: Path) -> None:
    imp = read_run(write_run(tmp_path / "a", [cycle(0, 1.0, 0.9), cycle(1, 0.8, 0.9)]))
    lrr = read_run(write_run(tmp_path / "b", [cycle(0, 1.0, 0.9)], method="lrr"))
    line = next(line for line in text(compare([imp, lrr])).splitlines() if line.split()[:1] == ["20.00"])
    assert line.split() == ["20.00", "18.00", "90.00", "–"]


def test_markup_in_names_is_printed_unchanged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [cycle(0, 1.0, 0.9)], model="[red]mlp", method="[red]imp")
    shown = text(compare([read_run(run)]))
    assert "[red]mlp" in shown
    assert shown.count("[red]imp") == 2


@pytest.mark.slow
def test_all_files_are_written_and_the_csv_has_a_line_for_each_run_and_cycle(tmp_path: Path) -> None:
    comparison = example(tmp_path / "runs")
    paths = write_comparison(comparison, tmp_path / "out")
    assert [path.name for path in paths] == [
        "compare.csv",
        "compare.json",
        "compare.png",
        "compare.svg",
        "comparison.md",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)
    with paths[0].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 3 * 6
    last = lines[-1]
    assert (last["label"], last["seed"], last["cycle"], last["density"]) == ("method1 (2)", "2", "5", "0.03125")
    assert float(last["test.accuracy"]) == pytest.approx(0.131)
    assert float(last["particles.test.accuracy"]) == pytest.approx(0.1)
    assert (last["particles"], last["steps"], last["samples"]) == ("2", "200", "2000")
    assert json.loads(paths[1].read_text()) == comparison.to_json()


def line(shown: str, method: str, nth: int = 0) -> list[str]:
    return [line.split() for line in shown.splitlines() if line.split()[:1] == [method]][nth]


def test_more_methods_than_sparsities_are_in_rows_with_the_cost_of_the_sparsest_model(tmp_path: Path) -> None:
    shown = text(costly(tmp_path))
    assert "50.00          90.00" in shown
    assert "at 90.00" in shown
    assert line(shown, "a") == ["a", "90.00", "±0.00", "*", "–", "–"]
    # 0.1 points below give or take t(0.975, 2) / sqrt(3) * 0.2 = 0.50: not told apart.
    assert line(shown, "b") == ["b", "89.90", "±0.50", "=", "80.00", "±0.50", "*", "1.00"]
    assert line(shown, "c") == ["c", "85.00", "±0.00", "79.00", "±0.00", "1.50"]
    # At 50 % b, c and d against a; at 90 % c and d against b.
    assert "(5 comparisons made" in " ".join(shown.split())


def test_the_difference_to_the_best_is_shown_in_both_layouts(tmp_path: Path) -> None:
    comparison = costly(tmp_path, baseline="best")
    down = text(comparison)
    assert "Difference to each sparsity's best" in down
    assert line(down, "a", 1) == ["a", "best", "–"]
    assert line(down, "b", 1) == ["b", "-0.10", "±0.50", "(3)", "best"]
    assert line(down, "c", 1) == ["c", "-5.00", "±0.00", "(3)", "-1.00", "±0.50", "(3)"]
    across = text(example(tmp_path / "two"))
    assert "best" not in line(across, "50.00", 1)
    two = compare([read_run(path) for path in sorted((tmp_path / "two").iterdir())], baseline="best")
    assert line(text(two), "50.00", 1) == ["50.00", "45.00", "-1.00", "±0.25", "(3)", "best"]


def test_one_seed_has_no_intervals_and_no_ties(tmp_path: Path) -> None:
    shown = text(costly(tmp_path, seeds=1))
    assert line(shown, "b") == ["b", "89.70", "79.80", "*", "1.00"]
    assert "Two common seeds are needed to test a difference to the best" in " ".join(shown.split())
    assert "n = 1 seed each" in shown
    assert "Two common seeds are needed for an interval." in shown
    assert "comparisons made" not in shown


def test_one_method_has_no_note_on_the_best(tmp_path: Path) -> None:
    shown = text(example(tmp_path, 1))
    assert "n = 3 seeds each." in shown
    assert "best" not in shown


def test_the_best_nll_is_the_lowest_with_methods_in_rows(tmp_path: Path) -> None:
    assert line(text(costly(tmp_path, metric="nll")), "a")[:4] == ["a", "0.1000", "±0.0000", "*"]


@pytest.mark.slow
def test_a_diverged_seed_is_shown_and_never_marked(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"a{s}", [cycle(0, 1.0, float("nan"))], method="a", seed=s) for s in (0, 1)]
    runs += [write_run(tmp_path / f"b{s}", [cycle(0, 1.0, 0.9)], method="b", seed=s) for s in (0, 1)]
    comparison = compare([read_run(path) for path in runs])
    assert line(text(comparison), "a") == ["a", "nan", "1.00"]
    for at in ("sparsity", "equal-cost"):
        write_comparison(comparison, tmp_path / at, at=at)


def test_at_equal_cost_each_sparsity_lists_its_methods_by_cost(tmp_path: Path) -> None:
    shown = text(costly(tmp_path), at="equal-cost")
    assert shown.index("50.00 % sparse (45.00 % of all)") < shown.index("90.00 % sparse (81.00 % of all)")
    assert line(shown, "a") == ["a", "3", "0.50", "90.00", "±0.00", "*", "–", "–"]
    assert line(shown, "b") == ["b", "3", "1.00", "89.90", "±0.50", "-0.10", "±0.50", "(3)", "a"]
    assert line(shown, "b", 1) == ["b", "3", "1.00", "80.00", "±0.50", "*", "–", "–"]
    assert line(shown, "d", 1) == ["d", "3", "2.00", "70.00", "±0.00", "-10.00", "±0.50", "(3)", "b"]
    assert "3 comparisons made" in shown
    assert "divided by those of one dense training" in " ".join(shown.split())


@pytest.mark.usefixtures("undrawn")
def test_markdown_has_methods_in_rows_bold_bests_and_escaped_names(tmp_path: Path) -> None:
    paths = write_comparison(costly(tmp_path / "runs"), tmp_path / "out")
    lines = paths[-1].read_text().splitlines()
    head = lines.index("| sparse %<br>(of all %) | 50.00<br>(45.00) | 90.00<br>(81.00) | × dense<br>at 90.00 |")
    assert lines[head + 1] == "| --- | ---: | ---: | ---: |"
    assert "| b | 89.90 ±0.50 = | **80.00 ±0.50 \\*** | 1.00 |" in lines
    odd = write_run(tmp_path / "odd", [cycle(0, 1.0, 0.9)], method="a|b_c*")
    paths = write_comparison(compare([read_run(odd)]), tmp_path / "out")
    assert "| a\\|b\\_c\\* | 90.00 \\* | 1.00 |" not in paths[-1].read_text()  # alone there is no best
    assert "| a\\|b\\_c\\* | 90.00 | 1.00 |" in paths[-1].read_text()
