import hashlib
import json
import math
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from swamp.errors import SwampError
from swamp.report.comparison import compare
from swamp.report.figure_description import (
    Axis,
    BarChart,
    Curve,
    Figure,
    Heatmap,
    Panel,
    density_ticks,
    limits_of_y,
    tables_of,
    ticks_of,
)
from swamp.report.figures import SECTIONS
from swamp.report.figures.outcome import accuracy_figure
from swamp.report.matplotlib_renderer import _figure, free_offset, legend_entries
from swamp.report.plotly_renderer import plotly_json
from swamp.report.report_data import ReportData, highlighted
from swamp.report.run_records import read_run
from swamp.report.statistics import drawn_interval, interval
from swamp.report.write import draw_comparison, draw_figure

from .analysed import write_analysis
from .comparisons import example
from .runs import cycle, write_run

BEGINNINGS = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}


@pytest.mark.slow
def test_every_figure_is_drawn_for_paper(runs, tmp_path):
    for which in SECTIONS:
        of = [chosen(tmp_path / "auto")] if which == "waves" else runs
        for path in draw_figure(of, which, tmp_path / f"{which}.svg", "svg"):
            assert path.read_bytes().startswith(BEGINNINGS["svg"])


def wave(trained: int, decision: str, gain: float | None = 0.02) -> dict[str, Any]:
    losses = {"single": 0.5, "pair": 0.45, "mean": 0.45, "deviation": 0.01, "predicted": 0.43, "gain": gain}
    return {"trained": trained, "kept": 2, **losses, "decision": decision}


def chosen(path: Path) -> Path:
    """A run that chose its numbers of particles."""
    waves = [wave(2, "more"), wave(3, "dropped", None)]
    cycles = [cycle(k, density, 0.9, (0.8, 0.9), waves=waves) for k, density in enumerate((1.0, 0.5))]
    return write_run(path, cycles, method="swamp", particles=["auto"])


def test_chosen_numbers_of_particles_stand_beside_their_decisions(tmp_path):
    (figure,) = SECTIONS["waves"].build(ReportData.read([chosen(tmp_path / "run")]))
    trained, kept = figure.panels[0].marks
    assert (trained.name, trained.y) == ("swamp (auto): trained", (3.0, 3.0))
    assert (kept.name, kept.y) == ("swamp (auto): averaged", (2.0, 2.0))
    (table,) = figure.tables
    assert table.title == "Decisions of swamp (auto)"
    assert [row[-2] for row in table.rows] == ["more", "dropped"] * 2
    assert [row[6] for row in table.rows[:2]] == ["2", "–"]


def test_runs_with_given_numbers_of_particles_say_what_is_missing(runs, tmp_path):
    with pytest.raises(SwampError, match="nothing to draw for waves: no run has --particles auto"):
        draw_figure(runs, "waves", tmp_path / "waves.svg", "svg")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", BEGINNINGS)
def test_a_figure_is_the_same_twice(runs, tmp_path, suffix):
    one, two = (draw_figure(runs, "accuracy", tmp_path / f"{name}.{suffix}", suffix)[0].read_bytes() for name in "ab")
    assert one.startswith(BEGINNINGS[suffix])
    assert one == two


def test_a_figure_without_its_analysis_names_the_command(runs, tmp_path):
    with pytest.raises(SwampError, match=r"swamp analyze .*imp-0 --only hull"):
        draw_figure(runs[:2], "hull", tmp_path / "hull.pdf", "pdf")


def test_barriers_are_means_over_seeds_in_points(runs):
    (figure,) = SECTIONS["barrier"].build(ReportData.read(runs))
    zero, particles, following = figure.panels[0].marks
    assert zero.in_legend is False
    assert (particles.name, following.name) == ("swamp (2): particles", "swamp (2): mean to next mean")
    assert particles.x == pytest.approx((1.0, 0.5, 0.25, 0.1))
    assert particles.y == pytest.approx((0, 1, 2, 3))
    assert following.y == pytest.approx((0, 2, 4, 6))
    # Two seeds have no band: their interval is in the tables.
    assert particles.low == ()


def test_a_band_is_drawn_from_three_seeds_on_and_the_interval_of_two_stays_in_the_tables():
    mean, half = drawn_interval([0.90, 0.92])
    assert mean == pytest.approx(0.91)
    assert math.isnan(half)
    assert interval([0.90, 0.92])[1] == pytest.approx(0.127, abs=1e-3)
    assert drawn_interval([0.9, 0.91, 0.92]) == interval([0.9, 0.91, 0.92])


@pytest.mark.parametrize(
    ("low", "high"), [(3.1, 4.2), (0.0123, 0.0127), (1.2, 1.9), (6.0, 9.9), (980.0, 1020.0), (0.3, 40.0), (1.0, 1e6)]
)
@pytest.mark.parametrize("limited", [False, True])
def test_a_logarithmic_axis_has_two_labelled_ticks_inside(low, high, limited):
    axis = Axis("cost", log=True, limits=(low, high) if limited else None)
    ticks = ticks_of(axis, [low, (low * high) ** 0.5, high])
    inside = [(at, text) for at, text in ticks if low <= at <= high]
    assert len(inside) >= 2
    assert len({text for _, text in inside}) == len(inside)
    assert all(float(text.replace(",", "")) == pytest.approx(at) for at, text in inside)


def test_particles_of_one_run_are_one_value_and_have_no_interval(runs):
    (figure,) = SECTIONS["curvature"].build(ReportData.read([runs[2]]))
    mean, particles = figure.panels[0].marks
    # The fixture has 8 and 14 over the root of the density, the one other particle added here 10.
    assert (mean.low, particles.low) == ((), ())
    lines = [json.loads(line) for line in (runs[2] / "analysis.jsonl").read_text().splitlines()]
    other = next(line for line in lines if line["key"] == "curvature/cycle-00/particle-0")
    added = {**other, "key": "curvature/cycle-00/particle-1", "trace": {"mean": 10.0, "error": 1.0, "probes": 8}}
    write_analysis(runs[2], [*lines, added])
    (figure,) = SECTIONS["curvature"].build(ReportData.read([runs[2]]))
    _, particles = figure.panels[0].marks
    assert particles.y[0] == pytest.approx(12.0)
    assert particles.low == ()


def test_the_gain_is_the_mean_minus_its_own_particles(runs):
    (figure,) = SECTIONS["particles"].build(ReportData.read(runs))
    _, gain = figure.panels[1].marks
    # Seed 0: 0.91 - 0.885, seed 1: 0.922 - 0.885.
    assert gain.y == pytest.approx((3.1,) * 4)


@pytest.mark.slow
def test_the_triangle_has_particles_at_its_corners_and_no_values_outside(runs):
    panel = SECTIONS["hull"].build(ReportData.read(runs))[0].panels[0]
    heatmap = panel.marks[0]
    rows, columns = len(heatmap.y), len(heatmap.x)
    # Weights (1, 0, 0) lie at the lower left; the fixture leaves (0, 0, 1), at the top, without a value.
    assert heatmap.z[0][0] == pytest.approx(20.0)
    assert heatmap.z[-1][columns // 2] is None
    assert heatmap.z[rows // 2][0] is None
    # In the middle a = b = c = 1/3: 0.2 - (0.3 + 0.2 + 0.25) / 9.
    middle = heatmap.z[round((rows - 1) / 3)][columns // 2]
    assert middle == pytest.approx(100 * (0.2 - 0.75 / 9), abs=0.2)


def test_trajectories_show_the_barrier_in_points_and_the_step_from_which_it_stays_low(runs):
    (figure,) = SECTIONS["paths"].build(ReportData.read(runs))
    curve = figure.panels[-1].marks[0]
    assert curve.y == (0.0, 3.0, 1.0)
    assert curve.name.endswith("stable from step 2")


def test_plotly_gets_only_finite_numbers_and_no_markup():
    curve = Curve("<b>$x$</b>", (1.0, math.nan, None), (math.inf, 2.0, 3.0), notes=("<i>a</i>", "b", "c"))
    drawn = plotly_json(Panel("t", Axis("<u>"), Axis("y"), (curve,)))
    text = json.dumps(drawn, allow_nan=False)
    assert drawn["data"][0]["x"] == [1.0, None, None]
    assert drawn["data"][0]["y"] == [None, 2.0, 3.0]
    assert "<b>" not in text
    assert "<i>" not in text
    assert "<u>" not in text


def test_a_band_with_a_gap_is_drawn_as_one_polygon_for_each_part():
    curve = Curve("a", (1.0, 2.0, 3.0, 4.0), (1.0,) * 4, low=(0.0, 0.0, None, 0.0), high=(2.0, 2.0, None, 2.0))
    band, _ = plotly_json(Panel("", Axis("x"), Axis("y"), (curve,)))["data"]
    assert band["x"] == [1.0, 2.0, 2.0, 1.0, None, 4.0, 4.0]
    assert band["y"] == [2.0, 2.0, 0.0, 0.0, None, 2.0, 0.0]


def test_a_label_on_a_logarithmic_axis_is_placed_by_its_logarithm():
    curve = Curve("a", (100.0,), (2.0,), notes=("one",), labelled=True)
    (label,) = plotly_json(Panel("", Axis("x", log=True), Axis("y"), (curve,)))["layout"]["annotations"]
    assert (label["x"], label["y"], label["text"]) == (2.0, 2.0, "one")


def test_labels_of_near_points_overlap_neither_each_other_nor_a_point():
    corners = ((0.0, 0.0), (100.0, 100.0))
    points = [(50.0, 50.0), (51.0, 50.0), (50.0, 52.0), (99.0, 99.0)]
    half, placed = (6.0, 4.0), []
    for x, y in points:
        dx, dy = free_offset((x, y), half, placed, points, corners)
        placed.append((x + dx, y + dy, *half))
    for index, (x, y, *_) in enumerate(placed):
        assert half[0] < x < 100 - half[0]
        assert half[1] < y < 100 - half[1]
        assert all(abs(x - a) > half[0] or abs(y - b) > half[1] for a, b in points)
        assert all(abs(x - a) > 2 * half[0] or abs(y - b) > 2 * half[1] for a, b, *_ in placed[:index])


def test_points_of_a_plane_that_coincide_have_one_label_and_those_of_near_ones_are_on_two_sides():
    notes = ("mean", "ticket", "near", "far")
    curve = Curve("networks", (0.0, 0.01, 0.1, 1.0), (0.0, 0.0, 0.0, 1.0), None, "markers", notes=notes, labelled=True)
    panel = Panel("", Axis(""), Axis(""), (curve,), equal=True)
    labels = plotly_json(panel)["layout"]["annotations"]
    assert [(one["text"], one["x"], one["yshift"]) for one in labels] == [
        ("mean, ticket", 0.0, 15),
        ("near", 0.1, -15),
        ("far", 1.0, 15),
    ]
    (axes,) = _figure(Figure("", "", (panel,)), wide=False).axes
    assert [text.get_text() for text in axes.texts] == ["mean, ticket", "near", "far"]


def test_grey_curves_share_one_legend_entry_and_bands_have_their_own():
    x = (1.0, 2.0)
    curves = [Curve("best", x, x, 0, low=(0.0, 1.0), high=(2.0, 3.0)), Curve("a", x, x, None), Curve("b", x, x, None)]
    panel = Panel("", Axis("x"), Axis("y"), (*curves, Curve("zero", x, x, None, "dotted", in_legend=False)))
    assert list(legend_entries(panel)) == ["best", "95 % interval over seeds", "2 others: a, b"]


def test_a_name_is_never_a_hover_template():
    curve = Curve("%{y}", (1.0,), (2.0,), notes=("%{x}",))
    (trace,) = plotly_json(Panel("", Axis("x"), Axis("y"), (curve,)))["data"]
    assert trace["hovertemplate"] == "%{text}<br>y %{y:.4g}<extra>%{fullData.name}</extra>"


def test_a_wide_band_does_not_flatten_its_curve():
    curve = Curve("a", (1.0, 2.0), (10.0, 12.0), low=(-90.0, 11.0), high=(110.0, 13.0))
    low, high = limits_of_y(Panel("", Axis("x"), Axis("y"), (curve,)))
    # 0.75 of the span of 2 on both sides, and a margin of a twentieth of 5.
    assert (low, high) == pytest.approx((8.25, 13.75))


@pytest.mark.parametrize(
    ("values", "names"),
    [([3.0, 40.0], ["2", "5", "10", "20", "50"]), ([0.002, 700.0], ["0.01", "0.1", "1", "10", "100"]), ([0.0], [])],
)
def test_ticks_of_logarithmic_axes_are_round(values, names):
    found = [name for _, name in ticks_of(Axis("", log=True), values)]
    assert set(names) <= set(found)
    assert len(found) <= 12


def test_tables_hold_the_numbers_of_the_panels():
    curve = Curve("a", (1.0, 2.0), (3.0, None), low=(2.5, None), high=(3.5, None))
    panel = Panel(
        "P", Axis("x"), Axis("y"), (curve, BarChart("b", ("one",), (4.0,)), Heatmap("z", (0.0,), (1.0,), ((5.0,),)))
    )
    extremes, curves, bars = tables_of(Figure("t", "r", (panel,)))
    assert curves.rows == (("1", "3 (2.5 to 3.5)"), ("2", "–"))
    assert bars.rows == (("one", "4"),)
    assert extremes.rows == (("lowest", "5", "0", "1"), ("highest", "5", "0", "1"))


def test_the_drawing_library_is_the_file_that_was_published():
    data = files("swamp.report").joinpath("assets", "plotly-cartesian.min.js").read_bytes()
    # Of plotly.js-cartesian-dist-min 4.1.1 on npm.
    assert hashlib.sha256(data).hexdigest() == "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"


@pytest.mark.slow
def test_commands_that_train_import_no_library_that_draws_and_a_comparison_no_pyplot(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [cycle(0, 1.0, 0.9)])
    code = (
        "import sys; import swamp.cli.run, swamp.cli.study, swamp.cli.tune\n"
        "assert not {'matplotlib', 'scipy'} & set(sys.modules)\n"
        "from pathlib import Path; from swamp.report.comparison import compare\n"
        "from swamp.report.run_records import read_run; from swamp.report.write import draw_comparison\n"
        f"draw_comparison(compare([read_run({str(tmp_path / 'a')!r})]), [Path({str(tmp_path / 'a.png')!r})])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_an_outlier_does_not_flatten_the_curves(tmp_path: Path, metric: str) -> None:
    comparison = example(tmp_path, metric=metric)
    (panel,) = accuracy_figure(comparison).panels
    factor = 100 if metric == "accuracy" else 1
    low, high = (limit / factor for limit in panel.y.limits)
    means = [row.cells["imp"].mean for row in comparison.rows]
    assert all(low < mean < high for mean in means[:-1])
    assert not low < means[-1] < high
    assert high - low < 0.2


def test_the_last_cycle_of_a_single_run_is_in_the_figure_however_much_worse(tmp_path: Path) -> None:
    comparison = example(tmp_path, methods=1)
    (panel,) = accuracy_figure(comparison).panels
    low, high = panel.y.limits
    (label,) = comparison.labels
    assert all(low < 100 * row.cells[label].mean < high for row in comparison.rows)


def test_a_figure_is_laid_out_once_for_all_its_files(tmp_path, monkeypatch) -> None:
    laid_out: list[Figure] = []
    renderer = sys.modules[_figure.__module__]
    monkeypatch.setattr(renderer, "_figure", lambda figure, wide: (laid_out.append(figure), _figure(figure, wide))[1])
    draw_comparison(example(tmp_path / "runs", methods=1, seeds=1), [tmp_path / "a.svg", tmp_path / "a.png"])
    assert len(laid_out) == 1
    assert (tmp_path / "a.svg").read_bytes().startswith(BEGINNINGS["svg"])
    assert (tmp_path / "a.png").read_bytes().startswith(BEGINNINGS["png"])


@pytest.mark.parametrize(("at", "off", "drawn"), [((0, 0), 0.1, True), ((0, 0), 3.0, False), ((9, 0), 0.0, False)])
def test_a_network_far_from_the_plane_is_not_drawn_on_it(tmp_path, at, off, drawn) -> None:
    run = write_run(tmp_path / "run", [cycle(0, 0.5, 0.9, (0.9, 0.8))], method="swamp")
    plane = {"u": [-1.0, 1.0], "v": [-1.0, 1.0], "loss": [[0.1] * 2] * 2, "error": [[0.1] * 2] * 2}
    points = {"points": {"mean": [0, 0], "ticket": list(at)}, "off_plane": {"mean": 0.0, "ticket": off}}
    write_analysis(run, [{"key": "landscape/cycle-00", "settings": {}, "cycle": 0, "sparsity": 0.5, **plane, **points}])
    (figure,) = SECTIONS["landscape"].build(ReportData.read([run]))
    assert figure.panels[0].curves[0].notes == (("mean", "ticket") if drawn else ("mean",))


def test_density_ticks_are_round_in_a_wide_range_and_the_densities_in_a_narrow_one() -> None:
    assert density_ticks([1.0, 0.8, 0.1]) == [0.1, 0.2, 0.5, 1.0]
    assert density_ticks([1.0, 0.8, 0.64]) == [0.64, 0.8, 1.0]
    # Whole numbers of weights: 5.02 % for 5 %.
    assert density_ticks([1.0, 0.2, 0.0502]) == [0.05, 0.1, 0.2, 0.5, 1.0]


def test_names_with_dollar_signs_and_a_lone_dense_point_can_be_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [cycle(0, 1.0, 0.9)], method="$\\bad$", task="$\\bad$", model="a_b$")
    draw_comparison(compare([read_run(run)]), [tmp_path / "a.svg"])
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()


def test_of_many_methods_the_baseline_and_the_best_are_highlighted(tmp_path: Path) -> None:
    comparison = example(tmp_path, methods=9, seeds=1)
    assert highlighted(comparison) == ("imp", *(f"method{k} ({k + 1})" for k in range(3, 9)))
    worst = example(tmp_path / "nll", methods=9, seeds=1, metric="nll")
    assert highlighted(worst) == highlighted(comparison)
    assert highlighted(example(tmp_path / "few", methods=8, seeds=1)) == tuple(
        f"method{k} ({k + 1})" if k else "imp" for k in range(8)
    )


@pytest.mark.slow
def test_a_long_legend_leaves_room_for_the_axes(tmp_path: Path) -> None:
    # A legend longer than the picture leaves no room for the axes, of which matplotlib warns: here an error.
    draw_comparison(example(tmp_path / "runs", methods=80, seeds=1), [tmp_path / "a.svg"])
    draw_comparison(example(tmp_path / "few", methods=12, seeds=1), [tmp_path / "b.svg"])


@pytest.mark.slow
@pytest.mark.parametrize("methods", [1, 9])
def test_the_equal_cost_figure_is_drawn_with_few_methods_and_with_many(tmp_path: Path, methods: int) -> None:
    comparison = example(tmp_path / "runs", methods, 2, model="a_b$", task="$\\bad$")
    draw_comparison(comparison, [tmp_path / "a.svg"], at="equal-cost")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("curves", [2, 4, 7])
def test_a_legend_is_outside_the_axes(curves, wide):
    marks = tuple(Curve(f"method {n}", (1.0, 2.0, 3.0), (n, 1.0, -n), n) for n in range(curves))
    drawn = _figure(Figure("title", "caption", (Panel("", Axis("x"), Axis("y"), marks),)), wide)
    drawn.draw_without_rendering()
    (axes,) = drawn.axes
    assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


def test_names_of_axes_are_whole_and_a_legend_is_below_slanted_labels():
    low = Panel("", Axis("x"), Axis("difference to the others (points)"), (Curve("a", (0.0, 1.0), (63.0, 59.5)),))
    names = ("hidden1.weight", "hidden2.weight")
    bars = tuple(BarChart(f"method {n}", names, (1.0, 2.0), n) for n in range(4))
    drawn = _figure(Figure("title", "caption", (low, low, Panel("", Axis(""), Axis("y"), bars))), False)
    drawn.draw_without_rendering()
    for axes in drawn.axes:
        name = axes.yaxis.label.get_window_extent()
        assert name.x0 >= 0
        assert name.y0 >= 0
    (*_, axes) = drawn.axes
    assert axes.get_legend().get_window_extent().y1 <= axes.xaxis.get_tightbbox().y0 + 1
    assert axes.get_legend().get_window_extent().y0 >= 0
