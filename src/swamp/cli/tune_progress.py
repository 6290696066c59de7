"""Progress of a tuning: trials, the best so far, time left; without a terminal as a line every 30 s."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table

from swamp.api.display import LOG_SECONDS
from swamp.api.pace import duration
from swamp.cli.study_progress import LiveTable, last_line
from swamp.errors import SwampError
from swamp.report.statistics import ReportMetric
from swamp.tuning.optuna_studies import TrialRecord
from swamp.tuning.search_space import shown_value
from swamp.tuning.tuning_directory import TuningDirectory, trial_name
from swamp.tuning.tuning_results import best_trial

_MOST_ROWS = 12

Records = Mapping[str, Sequence[TrialRecord]]
"""Method -> its trials."""


class TuningProgress(LiveTable):
    """Shows the trials of a tuning; a context manager.

    Args:
        directory: The tuning.
        console: Where lines are printed, and bars are drawn if it is a terminal.
        clock: Gives the time in seconds.
    """

    def __init__(
        self, directory: TuningDirectory, console: Console, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(console, clock)
        self.directory, self.done_before = directory, 0
        self.printed: set[tuple[str, int]] | None = None
        self.total = directory.trials * len(directory.tuning.methods)
        self.metric = ReportMetric(directory.tuning.metric)

    def show(self, records: Records) -> None:
        """Print a line for each trial that ended since the last call, and redraw the running ones.

        Where no bar can be drawn, print a line on all trials at the first call, and every 30 s.
        """
        ended = [(method, one) for method, found in records.items() for one in found if one.ended]
        if self.printed is None:
            self.printed = {(method, one.number) for method, one in ended}
            self.began, self.done_before = self.clock(), len(ended)
            if ended:
                self.console.print(f"{len(ended)} of {self.total} trials ended earlier and are not repeated.")
        for method, one in ended:
            if (method, one.number) not in self.printed:
                self.printed.add((method, one.number))
                place = f"[{len(self.printed):{len(str(self.total))}d}/{self.total}]"
                self.console.print(f"{place} {self._line(method, one, records[method])}", soft_wrap=True)
        if self.live:
            self.live.update(self._drawing(records), refresh=True)
        elif len(ended) < self.total and self.clock() - self.logged >= LOG_SECONDS:
            self.logged = self.clock()
            self.console.print(f"trials {self._counted(records)}; {self._pace(len(ended))}", soft_wrap=True)

    def _line(self, method: str, one: TrialRecord, records: Sequence[TrialRecord]) -> str:
        settings = ", ".join(f"{name} {shown_value(value)}" for name, value in one.settings.items())
        return f"{method} trial {one.number}: {self._outcome(one, records)}  ({settings})"

    def _outcome(self, one: TrialRecord, records: Sequence[TrialRecord]) -> str:
        if one.state == "failed":
            return f"failed: {last_line(one.why)}"
        if one.value is not None:
            best = best_trial(self.directory.tuning, records)
            return f"{self._shown(one.value)}{', the best so far' if best is one else ''}"
        cycle = max(one.cycles, default=0)
        return f"stopped after {cycle} cycles at {self._shown(one.cycles[cycle])}" if cycle else "stopped"

    def _shown(self, value: float) -> str:
        return f"{self.metric.name} {self.metric.show(value)}{' %' if self.metric.percent else ''}"

    def _drawing(self, records: Records) -> Group:
        table = Table(box=None, pad_edge=False, show_header=False)
        running = [(method, one) for method, found in records.items() for one in found if one.state == "running"]
        for method, one in running[:_MOST_ROWS]:
            done, total = self._epochs(method, one)
            bar = ProgressBar(total=total or 1, completed=done, width=24)
            table.add_row(f"{method} trial {one.number}", bar, f"{done:g}/{total:g} epochs", one.worker)
        if len(running) > _MOST_ROWS:
            table.add_row(f"and {len(running) - _MOST_ROWS} more")
        ended = sum(one.ended for found in records.values() for one in found)
        whole = Table(box=None, pad_edge=False, show_header=False)
        whole.add_row("trials", ProgressBar(total=self.total, completed=ended, width=24), self._counted(records))
        best = (self._best(method, found) for method, found in records.items())
        return Group(table, whole, *filter(None, best), self._pace(ended))

    def _epochs(self, method: str, one: TrialRecord) -> tuple[float, float]:
        """Epochs done and in all of a running trial, from its run directory, which may be on another machine."""
        name = trial_name(one.number)
        try:
            config = self.directory.tuning.trial(method, one.settings)
        except (SwampError, KeyError):
            return 0.0, 0.0  # it is being drawn, or will be refused
        state = self.directory.runs_of(method, {name: config}).state(name)
        return state.done, state.total

    def _best(self, method: str, records: Sequence[TrialRecord]) -> str:
        best = best_trial(self.directory.tuning, records)
        if best is None or best.value is None:
            return ""
        settings = ", ".join(f"{name} {shown_value(value)}" for name, value in best.settings.items())
        return f"best of {method}: {self._shown(best.value)}, trial {best.number}  ({settings})"

    def _counted(self, records: Records) -> str:
        counts = Counter(one.state for found in records.values() for one in found)
        parts = [f"{counts[name]} {name}" for name in ("finished", "stopped", "failed", "running") if counts[name]]
        return f"of {self.total}: {', '.join(parts) or 'none yet'}"

    def _pace(self, ended: int) -> str:
        seconds = self.clock() - self.began
        done = ended - self.done_before
        if not done:
            return "no rate yet: no trial has ended since this command started"
        left = max(0, self.total - ended)
        return f"{duration(seconds / done)} per trial, about {duration(left * seconds / done)} left"
