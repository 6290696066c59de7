"""Local tables of text: CSV, TSV, JSON lines and Parquet, a file for training, for test and, by choice, validation."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from swamp.datasets.cache import given_folder
from swamp.datasets.problem import DataOptions, Problem, TextOptions
from swamp.datasets.text.corpus import Texts, classification, language, regression
from swamp.errors import SwampError, shortened
from swamp.files import parse_json
from swamp.optional import need
from swamp.training.order import Seed

Goal = Literal["class", "number", "next token"]
Row = Mapping[str, Any]

_PARTS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_TEXT = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"))
_SINGLE = ("text", "sentence", "review", "content")
_LABEL = ("label", "labels", "target", "class", "score", "rating", "stars")


@dataclass(frozen=True)
class Table:
    """Rows of one part of a data set, and where they come from."""

    rows: Sequence[Row]
    where: str

    def __post_init__(self) -> None:
        if not self.rows:
            raise SwampError(f"{self.where} has no rows; give one example at least.")

    def column(self, name: str) -> list[Any]:
        """The values of that column. Raises SwampError where a row has none."""
        if name not in self.rows[0]:
            raise SwampError(f"{self.where} has no column {name!r}; it has {shortened(list(self.rows[0]))}.")
        missing = [place for place, row in enumerate(self.rows) if row.get(name) is None]
        if missing:
            raise SwampError(f"{self.where}: example {missing[0]} (from 0) has nothing in the column {name!r}.")
        return [row[name] for row in self.rows]


def text_folder(options: DataOptions, seed: Seed) -> Problem:
    """Your own texts and their classes: train and test in a folder, as .csv, .tsv, .jsonl or .parquet."""
    return from_tables("text-folder", folder_tables("text-folder", options), "class", options, seed)


def text_folder_number(options: DataOptions, seed: Seed) -> Problem:
    """Your own texts and a number for each to tell: files as for text-folder, the label is the number."""
    return from_tables("text-folder-number", folder_tables("text-folder-number", options), "number", options, seed)


def text_folder_text(options: DataOptions, seed: Seed) -> Problem:
    """Go on writing texts of your own: files as for text-folder, without labels."""
    return from_tables("text-folder-text", folder_tables("text-folder-text", options), "next token", options, seed)


def folder_tables(task: str, options: DataOptions) -> dict[str, Table]:
    """The parts that lie in the data folder, each one file named after it. Raises SwampError where one is missing."""
    if not options.folder:
        raise SwampError(f"{task}: name the data folder, with train and test (or validation) as .csv, .tsv, .jsonl ...")
    folder = given_folder(task, options.folder)
    found: dict[str, Table] = {}
    for part, stems in _PARTS.items():
        paths = [path for stem in stems for ending in _ENDINGS if (path := folder / f"{stem}{ending}").is_file()]
        if len(paths) > 1:
            raise SwampError(f"{task}: {paths[0]} and {paths[1]} are both the {part} part; leave one of them there.")
        if paths:
            found[part] = read_table(paths[0])
    return found


def read_table(path: Path) -> Table:
    """Read a .csv or .tsv with a line of column names, JSON lines, or Parquet. Raises SwampError naming the line."""
    try:
        if path.suffix == ".parquet":
            rows = need("pyarrow.parquet", "swamp[language]").read_table(path).to_pylist()
        elif path.suffix in (".jsonl", ".json"):
            rows = _json_rows(path)
        else:
            # GLUE's own .tsv files do not quote: a quotation mark is one more character there.
            quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
            with path.open(encoding="utf-8-sig", newline="") as file:
                # A row with more fields than there are names has the rest under no name: an empty one, as all are text.
                separator = "\t" if path.suffix == ".tsv" else ","
                rows = list(csv.DictReader(file, delimiter=separator, quoting=quoting, restkey=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SwampError(f"{path} cannot be read ({error}); give a whole file in UTF-8.") from error
    except ValueError as error:  # what pyarrow's own errors are
        raise SwampError(f"{path} is not a whole file of its kind: {error}.") from error
    return Table(rows, str(path))


def from_tables(
    task: str, tables: Mapping[str, Table], goal: Goal, options: DataOptions, seed: Seed, names: Sequence[str] = ()
) -> Problem:
    """The problem of a training and a test table, and perhaps one for validation.

    The validation table is the test's where there is none for test (of GLUE, whose test labels are secret). names:
    what classes are called; empty: the labels of the training table, sorted.
    """
    if "train" not in tables or len(tables) < 2:
        raise SwampError(
            f"{task}: train and test (or validation) are needed, there is {', '.join(tables) or 'none of them'}; name "
            "the files train.csv, test.csv (or .tsv, .jsonl, .parquet)."
        )
    columns = columns_of(tables["train"], options.text)
    validation = tables["validation"] if len(tables) == 3 else None
    chosen = {
        "train": tables["train"],
        "test": tables["test"] if "test" in tables else tables["validation"],
        **({} if validation is None else {"validation": validation}),
    }
    if goal == "next token":
        texts = {part: _texts(table, columns[:1], torch.zeros(len(table.rows))) for part, table in chosen.items()}
        return language(texts["train"], texts["test"], options, seed, texts.get("validation"))
    label = label_of(tables["train"], options.text)
    if goal == "number":
        texts = {part: _texts(table, columns, _numbers(table, label)) for part, table in chosen.items()}
        return regression(texts["train"], texts["test"], options, seed, texts.get("validation"))
    classes = _classes(tables["train"].column(label), names)
    texts = {part: _texts(table, columns, _labels(table, label, classes)) for part, table in chosen.items()}
    return classification(texts["train"], texts["test"], len(classes), options, seed, texts.get("validation"))


def columns_of(table: Table, options: TextOptions) -> tuple[str, ...]:
    """One column of text, or two: those the options name, or the usual ones. Raises SwampError for none."""
    if options.columns:
        return options.columns
    have = table.rows[0]
    for names in (*_TEXT, *((name,) for name in _SINGLE)):
        if all(name in have for name in names):
            return names
    raise SwampError(f"{table.where}: which columns are text? It has {shortened(list(have))}. Say --columns NAME.")


def label_of(table: Table, options: TextOptions) -> str:
    """The column of what is to be told. Raises SwampError for none."""
    if options.label:
        return options.label
    for name in _LABEL:
        if name in table.rows[0]:
            return name
    raise SwampError(f"{table.where}: which column is the label? It has {shortened(list(table.rows[0]))}. Say --label.")


def _json_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise SwampError(f"{path}, line {number} is not JSON ({error}); one object a line is expected.") from (
                    error
                )
            if not isinstance(row, dict):
                raise SwampError(f"{path}, line {number} is no object; expected e.g. {{'text': ..., 'label': ...}}.")
            rows.append(cast("Row", row))
    return rows


def _texts(table: Table, columns: Sequence[str], targets: torch.Tensor) -> Texts:
    parts = [[str(value) for value in table.column(name)] for name in columns]
    try:
        return Texts(parts[0], targets, parts[1] if len(parts) > 1 else None)
    except SwampError as error:
        raise SwampError(f"{table.where}: {error}") from error


def _classes(labels: Iterable[Any], names: Sequence[str]) -> list[str]:
    """Names of the classes in the order of their numbers; whole numbers from 0 on are numbers already."""
    if names:
        return list(names)
    found = {_said(label) for label in labels}
    if negative := sorted(label for label in found if re.fullmatch(r"-\d+", label)):
        raise SwampError(f"there is a label {negative[0]}, where classes are named or numbered from 0 on. Correct it.")
    if all(label.isdecimal() for label in found):
        # A class that no example has is a class all the same, but far more classes than labels is a mistake.
        numbers = sorted(int(label) for label in found)
        if numbers[-1] < 2 * len(numbers):
            return [str(number) for number in range(numbers[-1] + 1)]
    return sorted(found)


def _labels(table: Table, label: str, classes: Sequence[str]) -> torch.Tensor:
    numbers = {name: number for number, name in enumerate(classes)}
    found = [_said(value) for value in table.column(label)]
    for place, value in enumerate(found):
        if value not in numbers and value not in map(str, range(len(classes))):
            raise SwampError(
                f"{table.where}: example {place} (from 0) has the label {value!r}, the classes are "
                f"{shortened(list(classes))}. Correct it, or leave the example out."
            )
    return torch.tensor([numbers[value] if value in numbers else int(value) for value in found])


def _numbers(table: Table, label: str) -> torch.Tensor:
    values: list[float] = []
    for place, value in enumerate(table.column(label)):
        try:
            values.append(float(value))
        except (TypeError, ValueError) as error:
            raise SwampError(f"{table.where}: example {place} (from 0) has {value!r}, expected a number.") from error
    return torch.tensor(values)


def _said(label: Any) -> str:
    # Parquet and CSV may hold the same class as 1, 1.0, true and "1".
    if isinstance(label, bool):
        return str(int(label))
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip()
