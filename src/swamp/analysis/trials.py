"""The trials of a search for a ticket, on disk: what was tried is not trained again."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from swamp.analysis.ticket import Trial
from swamp.errors import CorruptFile, SwampError
from swamp.files import one_at_a_time, write_atomic
from swamp.runs.seal import sealed, unsealed

FILE = "trials.jsonl"


class Trials:
    """Trials of one question (a configuration and a sparsity) in a folder.

    Raises SwampError for a folder that holds another question's, or a damaged file.
    """

    def __init__(self, folder: Path, question: dict[str, Any]) -> None:
        """question: plain values, as JSON has them; equal ones have the same trials."""
        self.folder, self.question = folder, question
        self.file = folder / FILE
        self._lines = list(self._read())

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._lines)

    def barrier(self, measure: Callable[[int, int], float], steps: int, repeat: int) -> float:
        """The barrier of this trial, as it was found before."""
        known = {(trial.steps, trial.repeat): trial.barrier for trial in self._lines}
        return known[steps, repeat] if (steps, repeat) in known else measure(steps, repeat)

    def add(self, trial: Trial) -> None:
        """Keep a trial, unless it is there."""
        with one_at_a_time(self.folder / f".{FILE}.lock"):
            found = {(other.steps, other.repeat): other for other in self._read()}
            found.setdefault((trial.steps, trial.repeat), trial)
            self._lines = list(found.values())
            lines = [{"question": self.question}, *map(asdict, self._lines)]
            write_atomic(self.file, "".join(json.dumps(sealed(line)) + "\n" for line in lines).encode())

    def _read(self) -> Iterator[Trial]:
        if not self.file.exists():
            return
        try:
            lines = self.file.read_bytes().splitlines()
        except OSError as error:
            raise CorruptFile(f"{self.file} cannot be read ({error.strerror}). Move it away.") from error
        if not lines:
            raise CorruptFile(f"{self.file} is damaged: it is empty. Delete it: its trials are made anew.")
        for number, line in enumerate(lines):
            where = f"{self.file}, line {number + 1}"
            try:
                values, _ = unsealed(json.loads(line), where)
                if number:
                    yield msgspec.convert(values, Trial)
                    continue
                question = values["question"]
            except (ValueError, KeyError, TypeError, CorruptFile) as error:
                raise CorruptFile(
                    f"{where} is damaged ({error}). Delete the file: its trials are made anew."
                ) from error
            if question != self.question:
                raise SwampError(
                    f"{self.file} holds the trials of another search ({question}, not {self.question}). "
                    "Choose another folder (--trials)."
                )
