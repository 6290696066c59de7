"""Reads finished runs and compares them: tables, plots, files, an HTML page. Nothing here trains or changes a run."""

from swamp.report.compare import compare, metric_of
from swamp.report.comparison import Comparison
from swamp.report.crossed import Crossed
from swamp.report.evidence import Evidence
from swamp.report.figure import draw_figure
from swamp.report.label import label_runs
from swamp.report.overlaps import Overlaps
from swamp.report.page import render, write_report
from swamp.report.paper import FORMATS
from swamp.report.picture import Picture
from swamp.report.pictures import CHAPTERS
from swamp.report.plot import plot
from swamp.report.read import RunRecord, read_run
from swamp.report.serve import LivePage, PageServer
from swamp.report.table import print_sheet, print_table
from swamp.report.write import write_comparison, write_found

__all__ = [
    "CHAPTERS",
    "FORMATS",
    "Comparison",
    "Crossed",
    "Evidence",
    "LivePage",
    "Overlaps",
    "PageServer",
    "Picture",
    "RunRecord",
    "compare",
    "draw_figure",
    "label_runs",
    "metric_of",
    "plot",
    "print_sheet",
    "print_table",
    "read_run",
    "render",
    "write_comparison",
    "write_found",
    "write_report",
]
