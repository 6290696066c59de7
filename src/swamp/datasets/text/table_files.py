"""Tables of text: local CSV, TSV, JSON lines and Parquet files, and GLUE."""

import csv
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from swamp.datasets.cache import given_folder
from swamp.datasets.problem import DataOptions, Problem, TextOptions
from swamp.datasets.text.corpus import Texts, classification, language, regression
from swamp.errors import SwampError, first_line, need, shortened
from swamp.files import parse_json
from swamp.training.rng import Seed

Goal = Literal["class", "number", "next token"]
TextRow = Mapping[str, Any]

_PARTS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_TEXT = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"))
_SINGLE = ("text", "sentence", "review", "content")
_EXTRA = ""
"""Key of the fields beyond the column names, as all names are text."""
_LABEL = ("label", "labels", "target", "class", "score", "rating", "stars")


@dataclass(frozen=True)
class TextTable:
    """Rows of one part of a data set, and their source."""

    rows: Sequence[TextRow]
    where: str

    def __post_init__(self) -> None:
        if not self.rows:
            raise SwampError(f"{self.where} has no rows; expected at least one example.")

    def column(self, name: str) -> list[Any]:
        """The values of a column, texts and numbers. Raises SwampError if a row has none, or more than the columns."""
        if name not in self.rows[0]:
            raise SwampError(f"{self.where} has no column {name!r}; it has {shortened(list(self.rows[0]))}.")
        for place, row in enumerate(self.rows):
            value = row.get(name)
            nothing = value is None or value != value or not str(value).strip()
            if nothing or isinstance(value, list | dict):
                raise SwampError(f"{self.where}: example {place} (from 0) has no text or number in column {name!r}.")
            if _EXTRA in row:
                raise SwampError(
                    f"{self.where}: example {place} (from 0) has more fields than there are columns. Quote texts "
                    "that contain the separator, or remove the fields."
                )
        return [row[name] for row in self.rows]


def text_folder(options: DataOptions, seed: Seed) -> Problem:
    """Classify your own texts: train and test in a folder, as .csv, .tsv, .jsonl or .parquet."""
    return from_tables("text-folder", folder_tables("text-folder", options), "class", options, seed)


def text_folder_number(options: DataOptions, seed: Seed) -> Problem:
    """Predict a number for your own texts: files as for text-folder, the label is the number."""
    return from_tables("text-folder-number", folder_tables("text-folder-number", options), "number", options, seed)


def text_folder_text(options: DataOptions, seed: Seed) -> Problem:
    """Language modelling on your own texts: files as for text-folder, without labels."""
    return from_tables("text-folder-text", folder_tables("text-folder-text", options), "next token", options, seed)


def folder_tables(task: str, options: DataOptions) -> dict[str, TextTable]:
    """The parts in the data folder, one file each, named after the part. Raises SwampError for duplicates."""
    if not options.folder:
        raise SwampError(f"{task}: pass a data folder with train and test (or validation) as .csv, .tsv, .jsonl ...")
    folder = given_folder(task, options.folder)
    found: dict[str, TextTable] = {}
    for part, stems in _PARTS.items():
        paths = [path for stem in stems for ending in _ENDINGS if (path := folder / f"{stem}{ending}").is_file()]
        if len(paths) > 1:
            raise SwampError(f"{task}: {paths[0]} and {paths[1]} are both the {part} part; keep one of them.")
        if paths:
            found[part] = read_table(paths[0])
    return found


def read_table(path: Path) -> TextTable:
    """Read a .csv or .tsv file with column names, JSON lines, or Parquet. Raises SwampError, naming the line."""
    try:
        if path.suffix == ".parquet":
            rows = need("pyarrow.parquet", "swamp[language]").read_table(path).to_pylist()
        elif path.suffix in (".jsonl", ".json"):
            rows = _json_rows(path)
        else:
            # The .tsv files of GLUE do not quote: a quotation mark is an ordinary character.
            quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
            separator = "\t" if path.suffix == ".tsv" else ","
            with path.open(encoding="utf-8-sig", newline="") as file, _long_fields():
                # Strict: a quotation mark that is never closed would make one field of all that follows.
                reader = csv.DictReader(file, delimiter=separator, quoting=quoting, restkey=_EXTRA, strict=True)
                rows = list(reader)
            names = list(reader.fieldnames or ())
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise SwampError(f"{path} has {names.count(twice)} columns {twice!r}. Rename the others.")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SwampError(f"{path} cannot be read ({error}); expected a complete file in UTF-8.") from error
    except ValueError as error:  # pyarrow's errors
        raise SwampError(f"{path} is not a valid file: {error}.") from error
    return TextTable(rows, str(path))


def from_tables(
    task: str, tables: Mapping[str, TextTable], goal: Goal, options: DataOptions, seed: Seed, names: Sequence[str] = ()
) -> Problem:
    """The problem of a training table, a test table and an optional validation table.

    Without a test table, the validation table is the test data (GLUE: the test labels are secret). names: class names;
    empty: the labels of the training table, sorted.
    """
    if "train" not in tables or len(tables) < 2:
        raise SwampError(
            f"{task}: expected train and test (or validation), got {', '.join(tables) or 'none of them'}; name the "
            "files train.csv, test.csv (or .tsv, .jsonl, .parquet)."
        )
    columns = columns_of(tables["train"], options.text)
    validation = tables["validation"] if len(tables) == 3 else None
    chosen = {
        "train": tables["train"],
        "test": tables["test"] if "test" in tables else tables["validation"],
        **({} if validation is None else {"validation": validation}),
    }
    if goal == "next token":
        if len(columns) > 1 and options.text.columns:
            raise SwampError(f"{task} reads one column of text, got {' and '.join(columns)}. Name one of them.")
        texts = {part: _texts(table, columns[:1], torch.zeros(len(table.rows))) for part, table in chosen.items()}
        return language(texts["train"], texts["test"], options, seed, texts.get("validation"))
    label = label_of(tables["train"], options.text)
    if label in columns:
        raise SwampError(f"{task}: the column {label!r} is the label, and cannot be among the text columns.")
    if goal == "number":
        texts = {part: _texts(table, columns, _numbers(table, label)) for part, table in chosen.items()}
        return regression(texts["train"], texts["test"], options, seed, texts.get("validation"))
    classes = _classes(tables["train"].column(label), names)
    texts = {part: _texts(table, columns, _labels(table, label, classes, names)) for part, table in chosen.items()}
    return classification(texts["train"], texts["test"], len(classes), options, seed, texts.get("validation"))


@contextmanager
def _long_fields() -> Generator[None]:
    """Inside the block, fields of a CSV file may have more than the default limit of 131,072 characters."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def columns_of(table: TextTable, options: TextOptions) -> tuple[str, ...]:
    """One or two text columns: those in the options, or columns with common names. Raises SwampError for none."""
    if options.columns:
        return options.columns
    have = table.rows[0]
    for names in (*_TEXT, *((name,) for name in _SINGLE)):
        if all(name in have for name in names):
            return names
    raise SwampError(f"{table.where}: no text column found among {shortened(list(have))}. Set --columns NAME.")


def label_of(table: TextTable, options: TextOptions) -> str:
    """The target column. Raises SwampError for none."""
    if options.label:
        return options.label
    for name in _LABEL:
        if name in table.rows[0]:
            return name
    raise SwampError(f"{table.where}: no label column found among {shortened(list(table.rows[0]))}. Set --label NAME.")


def _json_rows(path: Path) -> list[TextRow]:
    rows: list[TextRow] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise SwampError(f"{path}, line {number} is not JSON ({error}); expected one object per line.") from (
                    error
                )
            if not isinstance(row, dict):
                raise SwampError(
                    f"{path}, line {number} is not an object; expected e.g. {{'text': ..., 'label': ...}}."
                )
            rows.append(cast("TextRow", row))
    return rows


def _texts(table: TextTable, columns: Sequence[str], targets: torch.Tensor) -> Texts:
    parts = [[str(value) for value in table.column(name)] for name in columns]
    try:
        return Texts(parts[0], targets, parts[1] if len(parts) > 1 else None)
    except SwampError as error:
        raise SwampError(f"{table.where}: {error}") from error


def _classes(labels: Iterable[Any], names: Sequence[str]) -> list[str]:
    """Class names in the order of their numbers; integers from 0 are class numbers."""
    if names:
        return list(names)
    found = {_label_text(label) for label in labels}
    if negative := sorted(label for label in found if re.fullmatch(r"-\d+", label)):
        raise SwampError(f"the label {negative[0]} is negative; expected class names, or numbers from 0. Correct it.")
    if all(re.fullmatch(r"0|[1-9][0-9]*", label) for label in found):
        # A class may have no examples; but a largest label of twice the number of labels is a mistake.
        numbers = sorted(int(label) for label in found)
        if numbers[-1] < 2 * len(numbers):
            return [str(number) for number in range(numbers[-1] + 1)]
    return sorted(found)


def _labels(table: TextTable, label: str, classes: Sequence[str], names: Sequence[str]) -> torch.Tensor:
    """Class numbers. Labels are the classes, or the numbers of classes with given names."""
    numbers = {str(number): number for number in range(len(names))}
    numbers |= {name: number for number, name in enumerate(classes)}
    found = [_label_text(value) for value in table.column(label)]
    for place, value in enumerate(found):
        if value not in numbers:
            raise SwampError(
                f"{table.where}: example {place} (from 0) has the label {value!r}, the classes are "
                f"{shortened(list(classes))}. Correct it, or remove the example."
            )
    return torch.tensor([numbers[value] for value in found])


def _numbers(table: TextTable, label: str) -> torch.Tensor:
    values: list[float] = []
    for place, value in enumerate(table.column(label)):
        try:
            values.append(float(value))
        except (TypeError, ValueError) as error:
            raise SwampError(f"{table.where}: example {place} (from 0) has {value!r}, expected a number.") from error
    return torch.tensor(values)


def _label_text(label: Any) -> str:
    # Parquet and CSV may store the same class as 1, 1.0, true and "1".
    if isinstance(label, bool):
        return str(int(label))
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip()


@dataclass(frozen=True)
class GlueTask:
    """Builder of one task of GLUE (Wang et al. 2019): from `datasets`, or from files as for text-folder.

    columns: text columns. classes: names by class number, as in `datasets`; none: regression. The validation part is
    the test data here, as the test labels are secret.
    """

    summary: str
    name: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    validation: str = "validation"

    def __call__(self, options: DataOptions, seed: Seed) -> Problem:
        """Build the task. Raises SwampError if the data cannot be loaded."""
        goal: Goal = "class" if self.classes else "number"
        text = options.text
        if options.folder:
            tables = folder_tables(f"glue-{self.name}", options)
            tables.pop("test", None)
        else:
            tables = {"train": _fetched(self.name, "train"), "test": _fetched(self.name, self.validation)}
            text = replace(text, columns=text.columns or self.columns, label=text.label or "label")
        return from_tables(f"glue-{self.name}", tables, goal, replace(options, text=text), seed, self.classes)


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE_TASKS: Mapping[str, GlueTask] = {
    "glue-cola": GlueTask(
        "GLUE: is a sentence grammatical? 2 classes.", "cola", ("sentence",), ("unacceptable", "acceptable")
    ),
    "glue-sst2": GlueTask(
        "GLUE: sentiment of a movie-review sentence; 2 classes.", "sst2", ("sentence",), ("negative", "positive")
    ),
    "glue-mrpc": GlueTask(
        "GLUE: do two sentences mean the same? 2 classes.", "mrpc", _PAIR, ("not_equivalent", "equivalent")
    ),
    "glue-stsb": GlueTask("GLUE: similarity of two sentences, 0 to 5; regression.", "stsb", _PAIR, ()),
    "glue-qqp": GlueTask(
        "GLUE: do two questions ask the same? 2 classes.",
        "qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
    ),
    "glue-mnli": GlueTask(
        "GLUE: does the premise entail the hypothesis, contradict it, or neither? 3 classes.",
        "mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        "validation_matched",
    ),
    "glue-qnli": GlueTask(
        "GLUE: does the sentence answer the question? 2 classes.", "qnli", ("question", "sentence"), _ENTAILMENT
    ),
    "glue-rte": GlueTask("GLUE: does the first sentence entail the second? 2 classes.", "rte", _PAIR, _ENTAILMENT),
    "glue-wnli": GlueTask(
        "GLUE: does the first sentence entail the second, with a pronoun replaced? 2 classes.",
        "wnli",
        _PAIR,
        ("not_entailment", "entailment"),
    ),
}


def _fetched(name: str, split: str) -> TextTable:
    library = need("datasets", "swamp[language]")
    where = f"GLUE's {name} ({split})"
    try:
        loaded: Any = library.load_dataset("nyu-mll/glue", name, split=split)
    except Exception as error:
        # A download may raise many types: connection, permission, missing cache.
        raise SwampError(
            f"{where} cannot be loaded: {first_line(error)}. Offline, put train and validation as .parquet, .jsonl or "
            ".tsv into a folder and pass it: --folder FOLDER."
        ) from error
    return TextTable(loaded.to_list(), where)
