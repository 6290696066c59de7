"""Reads finished runs and compares them: tables, plots and files. Nothing here trains or changes a run."""

from swamp.report.compare import compare
from swamp.report.comparison import Comparison
from swamp.report.plot import plot
from swamp.report.read import RunRecord, read_run
from swamp.report.table import print_table
from swamp.report.write import write_comparison

__all__ = ["Comparison", "RunRecord", "compare", "plot", "print_table", "read_run", "write_comparison"]
