"""Reads finished runs and compares them: tables, figures, files, an HTML page. It trains nothing and changes no run."""

from swamp.report.comparison import Comparison, compare, metric_of
from swamp.report.figures import SECTIONS
from swamp.report.figures.loss_landscape import instability
from swamp.report.figures.spread import noise_table
from swamp.report.mask_comparison import MaskByTraining, MaskOverlaps
from swamp.report.matplotlib_renderer import FORMATS, draw
from swamp.report.page import render, write_report
from swamp.report.report_data import ReportData
from swamp.report.run_records import RunRecord, label_runs, read_run
from swamp.report.serve import LivePage, PageServer
from swamp.report.tables import print_comparison, print_table
from swamp.report.write import draw_comparison, draw_figure, write_comparison, write_finding

__all__ = [
    "FORMATS",
    "SECTIONS",
    "Comparison",
    "LivePage",
    "MaskByTraining",
    "MaskOverlaps",
    "PageServer",
    "ReportData",
    "RunRecord",
    "compare",
    "draw",
    "draw_comparison",
    "draw_figure",
    "instability",
    "label_runs",
    "metric_of",
    "noise_table",
    "print_comparison",
    "print_table",
    "read_run",
    "render",
    "write_comparison",
    "write_finding",
    "write_report",
]
