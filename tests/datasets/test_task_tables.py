"""Local tables of text: every kind of file gives the same problem, and what is wrong is named by file and example."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swamp.datasets import task_named
from swamp.datasets.problem import DataOptions, Problem, TextOptions
from swamp.errors import SwampError
from swamp.training import Seed, TokenData

ROWS = [
    {"text": f'say "{word}", {word}\tagain', "label": label} for word, label in zip("abcdef", "yesno!", strict=True)
]
SIX = {"train": ROWS, "test": ROWS[:3]}


def write(folder: Path, ending: str, parts: dict[str, list[dict]]) -> DataOptions:
    for part, rows in parts.items():
        path = folder / f"{part}{ending}"
        if ending == ".parquet":
            arrow = pytest.importorskip("pyarrow")
            pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)
        elif ending == ".jsonl":
            path.write_text("\n\n".join(map(json.dumps, rows)))
        else:
            with path.open("w", newline="") as file:
                tsv = ending == ".tsv"
                more = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if tsv else {}
                writer = csv.DictWriter(file, list(rows[0]), **more)
                writer.writeheader()
                writer.writerows(rows)
    return DataOptions(folder=str(folder), validation=0)


def build(name: str, options: DataOptions) -> Problem:
    return task_named(name)(options, Seed(0))


def shown(problem: Problem) -> list[tuple[str, int]]:
    """Texts and classes of the test examples."""
    ((inputs, targets),) = problem.task.test.in_order(64)
    texts = [bytes(i - 4 for i in ids if i > 3).decode() for ids in inputs["input_ids"].tolist()]
    return sorted(zip(texts, targets.tolist(), strict=True))


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_problem(tmp_path: Path, ending: str):
    rows = [{**row, "text": row["text"].replace("\t", " ")} for row in ROWS]
    problem = build("text-folder", write(tmp_path, ending, {"train": rows, "test": rows[:3]}))
    assert problem.classes == 6
    assert [len(data) for data in (problem.task.train, problem.task.test)] == [6, 3]
    # Sorted, the labels of the first three are y = 5, e = 1, s = 4.
    assert shown(problem) == [('say "a", a again', 5), ('say "b", b again', 1), ('say "c", c again', 4)]


def test_pairs_and_validation_are_found_by_their_usual_names(tmp_path: Path):
    rows = [{"premise": "it rains", "hypothesis": "it is wet", "label": k % 2} for k in range(4)]
    options = write(tmp_path, ".jsonl", {"train": rows, "dev": rows[:2], "test": rows})
    problem = build("text-folder", options)
    assert problem.task.validation is not None
    assert len(problem.task.validation) == 2
    inputs, _ = next(problem.task.train.in_order(1))
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(2) == 1
    assert bytes(i - 4 for i in ids if i > 3) == b"it rainsit is wet"


def test_numbers_and_columns_of_any_name(tmp_path: Path):
    rows = [{"q": "one", "worth": "1.5"}, {"q": "two", "worth": "-2"}]
    write(tmp_path, ".csv", {"train": rows, "val": rows})
    text = TextOptions(columns=("q",), label="worth")
    problem = build("text-folder-number", DataOptions(folder=str(tmp_path), validation=0, text=text))
    assert isinstance(problem.task.train, TokenData)
    assert sorted(problem.task.train.targets.tolist()) == [-2, 1.5]
    assert problem.classes == 1


def test_a_language_model_needs_no_label(tmp_path: Path):
    rows = [{"text": "go on, " * 9}]
    write(tmp_path, ".csv", {"train": rows, "test": rows})
    options = DataOptions(folder=str(tmp_path), validation=0, text=TextOptions(length=16))
    problem = build("text-folder-text", options)
    assert problem.tokens is not None
    assert problem.tokens.next
    assert len(problem.task.train) == 63 // 16


def test_glue_has_its_columns_and_classes_and_its_validation_is_the_test(tmp_path: Path):
    rows = [{"sentence1": "a", "sentence2": "b", "label": k % 2, "idx": k} for k in range(4)]
    secret = [{**rows[0], "label": -1}]
    options = write(tmp_path, ".jsonl", {"train": rows, "validation": rows[:3], "test": secret})
    problem = build("glue-rte", options)
    assert problem.classes == 2
    assert len(problem.task.test) == 3
    named = [{**row, "label": ("entailment", "not_entailment")[row["label"]]} for row in rows]
    (tmp_path / "named").mkdir()
    again = build("glue-rte", write(tmp_path / "named", ".tsv", {"train": named, "dev": named[:3]}))
    assert isinstance(again.task.train, TokenData)
    assert isinstance(problem.task.train, TokenData)
    assert torch.equal(again.task.train.targets, problem.task.train.targets)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": ROWS}, "expected train and test .or validation., got train"),
        ({"train": [{"words": "a", "label": 1}], "test": ROWS}, "no text column found among words, label.*--columns"),
        ({"train": [{"text": "a", "kind": 1}], "test": ROWS}, "no label column"),
        (
            {"train": [{"text": " ", "label": 1}], "test": ROWS},
            "train.jsonl: example 0 .* has no text or number in column 'text'",
        ),
        ({"train": [{"text": "\ud800", "label": 1}], "test": ROWS}, "train.jsonl, line 1 .*half of a character"),
        ({"train": ROWS, "test": [{"text": "a", "label": "?"}]}, "test.jsonl: example 0 .* has the label '.'"),
        ({"train": [{"text": "a", "label": -1}], "test": ROWS}, "the label -1 is negative"),
        ({"train": [ROWS[0], {"text": "a"}], "test": ROWS}, "example 1 .* has no text or number in column 'label'"),
        ({"train": [ROWS[0], {"text": "a", "label": " "}], "test": ROWS}, "example 1 .* in column 'label'"),
        ({"train": [ROWS[0], {"text": "a", "label": float("nan")}], "test": ROWS}, "example 1 .* in column 'label'"),
        ({"train": [{"text": "a", "label": [0, 1]}], "test": ROWS}, "example 0 .* in column 'label'"),
        ({"train": [{"text": "a", "label": 0}] * 2, "test": [{"text": "a", "label": 0}]}, "have the same class"),
        ({"train": ROWS, "test": []}, "test.jsonl has no rows"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path: Path, parts: dict, message: str):
    with pytest.raises(SwampError, match=message):
        build("text-folder", write(tmp_path, ".jsonl", parts))


def test_files_that_are_not_whole_are_refused(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n{"text": ')
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": 1}')
    with pytest.raises(SwampError, match=r"train.jsonl, line 2 is not JSON"):
        build("text-folder", DataOptions(folder=str(tmp_path)))
    (tmp_path / "train.csv").write_text("text,label\n")
    with pytest.raises(SwampError, match=r"train.csv and .*train.jsonl are both the train part"):
        build("text-folder", DataOptions(folder=str(tmp_path)))


def test_a_number_that_is_none_is_named(tmp_path: Path):
    rows = [{"text": "a", "label": "high"}]
    with pytest.raises(SwampError, match=r"example 0 .* has 'high', expected a number"):
        build("text-folder-number", write(tmp_path, ".csv", {"train": rows, "test": rows}))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["text,label", "a,0", "well, b,1"], "example 1 .* has more fields than there are columns"),
        (["text,label", "a,0", '"b,1', "c,0"], "unexpected end of data"),
        (["text,text,label", "a,b,0", "c,d,1"], "has 2 columns 'text'"),
    ],
)
def test_csv_files_whose_rows_run_together_are_refused(tmp_path: Path, lines: list[str], message: str):
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(SwampError, match=message):
        build("text-folder", DataOptions(folder=str(tmp_path), validation=0))


def test_a_label_that_the_training_data_do_not_have_is_no_class_number(tmp_path: Path):
    rows = [{"text": "a", "label": label} for label in (10, 20)]
    with pytest.raises(SwampError, match="has the label '1', the classes are 10, 20"):
        build("text-folder", write(tmp_path, ".csv", {"train": rows, "test": [{"text": "a", "label": 1}]}))


def test_labels_with_leading_zeros_are_names(tmp_path: Path):
    rows = [{"text": "a", "label": label} for label in ("01", "02")]
    assert build("text-folder", write(tmp_path, ".csv", {"train": rows, "test": rows})).classes == 2


def test_long_texts_and_a_byte_order_mark_are_read(tmp_path: Path):
    rows = [{"text": "a" * 200_000, "label": 0}, {"text": "b", "label": 1}]
    write(tmp_path, ".csv", {"train": rows})
    (tmp_path / "test.jsonl").write_text('\ufeff{"text": "a", "label": 1}')
    problem = build("text-folder", DataOptions(folder=str(tmp_path), validation=0))
    assert [len(data) for data in (problem.task.train, problem.task.test)] == [2, 1]
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("text-folder", TextOptions(columns=("text", "label")), "'label' is the label, and cannot be among"),
        ("text-folder-text", TextOptions(columns=("text", "label")), "reads one column of text, got text and label"),
        ("text-folder", TextOptions(tokenizer="words"), "no word occurs twice .*use the tokenizer .bytes."),
    ],
)
def test_columns_and_tokenizers_that_do_not_fit_are_refused(tmp_path: Path, name: str, text: TextOptions, message: str):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    options = write(tmp_path, ".csv", {"train": rows, "test": rows})
    with pytest.raises(SwampError, match=message):
        build(name, replace(options, text=text))


def test_a_row_with_too_many_fields_does_not_hide_what_is_wrong(tmp_path: Path):
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text("text,kind\na film,good,1,2\n")
    with pytest.raises(SwampError, match=r"no label column found among text, kind"):
        build("text-folder", DataOptions(folder=str(tmp_path)))
