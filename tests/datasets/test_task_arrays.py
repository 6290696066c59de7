"""The tasks npz and csv: arrays and tables of the user."""

import numpy as np
import pytest
import torch

from swamp.cli import main
from swamp.datasets import build_problem
from swamp.datasets.problem import DataOptions, TextOptions
from swamp.errors import SwampError
from swamp.training import Seed

RNG = np.random.default_rng(0)
X = RNG.normal(3, 5, (60, 4)).astype(np.float32)
Y = (X[:, 0] > 3).astype(np.int64)

FAST = ["--quiet", "--epochs", "2", "--batch-size", "16", "--lr", "0.01", "--sparsity", "0.5", "--cycles", "1"]
FAST += ["--particles", "2", "--backend", "sequential"]


def problem(task, path, *, seed=0, **options):
    return build_problem(task, "mlp-8", DataOptions(folder=str(path), **options), Seed(seed))


def csv(path, rows, header=None):
    lines = ([",".join(header)] if header else []) + [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_table_with_other_separators_is_refused_by_their_name(tmp_path, sign, name):
    for rows in ([["a", "b"], ["1,5", "0"]], [["a", "b"], ["1", "0"]], [["1", "0"], ["2", "1"]]):
        (tmp_path / "a.csv").write_text("\n".join(map(sign.join, rows)))
        with pytest.raises(SwampError, match=f"has {name} between its cells; separate them with commas"):
            problem("csv", tmp_path / "a.csv")


@pytest.mark.parametrize(
    "names", [("inputs", "targets"), ("x", "y"), ("X", "Y"), ("data", "labels"), ("images", "label"), ("features", "y")]
)
def test_arrays_are_found_by_their_usual_names(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (X, Y), strict=True)), about=np.zeros(3))
    made = problem("npz", tmp_path / "a.npz")
    assert (made.shape, made.classes, made.available) == ((4,), 2, 48)
    assert [len(part) for part in (made.task.train, made.task.validation, made.task.test)] == [43, 5, 12]
    other = problem("npz", tmp_path / "a.npz", seed=1)
    assert torch.equal(made.task.test.inputs, other.task.test.inputs)
    assert not torch.equal(made.task.train.inputs, other.task.train.inputs)


@pytest.mark.parametrize("style", ["x_train", "train_x", "X_train", "train-inputs"])
def test_splits_are_found_by_their_usual_names_and_in_a_folder(tmp_path, style):
    other = {"x": "y", "X": "Y", "inputs": "targets"}
    arrays = {}
    for part, rows in (("train", slice(40)), ("test", slice(40, 50)), ("val", slice(50, 60))):
        name = style.replace("train", part)
        for inputs, targets in other.items():
            if inputs in name.replace("-", "_").split("_"):
                arrays |= {name: X[rows], name.replace(inputs, targets): Y[rows]}
    np.savez(tmp_path / "all.npz", **arrays)
    whole = problem("npz", tmp_path / "all.npz")
    folder = tmp_path / "folder"
    folder.mkdir()
    for part, rows in (("train", slice(40)), ("test", slice(40, 50)), ("val", slice(50, 60))):
        np.savez(folder / f"{part}.npz", x=X[rows], y=Y[rows])
    apart = problem("npz", folder)
    for made in (whole, apart):
        assert [len(part) for part in (made.task.train, made.task.validation, made.task.test)] == [40, 10, 10]
    assert torch.equal(whole.task.train.inputs, apart.task.train.inputs)


@pytest.mark.parametrize(
    ("images", "shape"),
    [((9, 5, 6), (1, 5, 6)), ((9, 5, 6, 3), (3, 5, 6)), ((9, 3, 5, 6), (3, 5, 6))],
)
def test_bytes_are_images_between_0_and_1(tmp_path, images, shape):
    np.savez(tmp_path / "a.npz", x=np.full(images, 255, np.uint8), y=np.arange(9) % 2)
    made = problem("npz", tmp_path / "a.npz")
    assert made.shape == shape
    inputs, _ = next(made.task.test.in_order(2))
    assert inputs.dtype == torch.float32
    assert float(inputs.min()) == float(inputs.max()) == 1


def test_images_of_any_type_get_their_channels_first(tmp_path):
    images = RNG.random((9, 5, 6, 3), np.float32)
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(9) % 2)
    made = problem("npz", tmp_path / "a.npz", validation=0)
    assert made.shape == (3, 5, 6)
    found = torch.cat([made.task.train.inputs, made.task.test.inputs])
    assert set(found[:, 1, 2, 3].tolist()) == set(images[:, 2, 3, 1].tolist())


def test_features_are_standardised_by_the_training_examples_alone(tmp_path):
    made = problem("npz", np.savez(tmp_path / "a.npz", x=X, y=Y) or tmp_path / "a.npz")
    inputs = torch.cat([batch[0] for batch in made.task.train.in_order(8)])
    assert torch.allclose(inputs.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(inputs.std(0, correction=0), torch.ones(4), atol=1e-5)


@pytest.mark.parametrize("header", [None, ["a", "b", "c", "d", "kind"]])
def test_a_table_has_its_classes_in_the_last_column_with_or_without_a_header(tmp_path, header):
    rows = [[*map(float, x), ("low", "high")[y]] for x, y in zip(X, Y, strict=True)]
    made = problem("csv", csv(tmp_path / "t.csv", rows, header))
    assert (made.shape, made.classes) == ((4,), 2)
    # Classes are numbered in alphabetical order.
    assert float((made.task.train.targets == 0).float().mean()) == pytest.approx(Y.mean(), abs=0.2)


def test_classes_that_look_like_a_name_are_no_header(tmp_path):
    table = csv(tmp_path / "t.csv", [[*x, "yn"[y]] for x, y in zip(X, Y, strict=True)])
    assert problem("csv", table).available == 48
    assert problem("csv", table, text=TextOptions(label="4")).available == 48


@pytest.mark.parametrize(
    ("header", "kinds"),
    [
        (["0", "1", "2", "3", "4"], [0, 1]),  # as pandas names the columns of an array
        (["900.5", "901", "901.5", "902", "yield"], [0, 1]),
        (["900.5", "901", "901.5", "902", "class"], ["low", "high"]),
        (["900.5", "901", "901.5", "902", "species"], ["low", "high"]),
    ],
)
def test_the_names_of_columns_may_be_numbers(tmp_path, header, kinds):
    table = csv(tmp_path / "t.csv", [[*x, kinds[y]] for x, y in zip(X, Y, strict=True)], header)
    made = problem("csv", table, text=TextOptions(label=header[-1]) if "species" in header else TextOptions())
    assert (made.classes, made.available) == (2, 48)


def test_the_label_is_a_common_name_or_the_one_given(tmp_path):
    table = csv(tmp_path / "t.csv", [[y, *x, 7.5] for x, y in zip(X, Y, strict=True)], ["label", *"abcd", "price"])
    assert problem("csv", table).shape == (5,)
    chosen = problem("csv-number", table, text=TextOptions(label="price"))
    assert set(chosen.task.train.targets.tolist()) == {7.5}
    headless = csv(tmp_path / "h.csv", [[y, *x] for x, y in zip(X, Y, strict=True)])
    assert problem("csv", headless, text=TextOptions(label="0")).classes == 2


def test_numbers_are_predicted_one_or_several(tmp_path):
    for name, targets, outputs in (("one", X[:, 0], 1), ("two", X[:, :2], 2)):
        np.savez(tmp_path / f"{name}.npz", x=X, y=targets)
        made = problem("npz-number", tmp_path / f"{name}.npz")
        assert made.classes == outputs
        file, out = str(tmp_path / f"{name}.npz"), str(tmp_path / name)
        main(["run", "--task", "npz-number", "--folder", file, "--model", "mlp-8", "--out", out, *FAST])
        assert (tmp_path / name / "summary.json").exists()


@pytest.mark.parametrize(
    ("task", "write", "message"),
    [
        ("npz", lambda path: np.savez(path, x=X), "train needs inputs and targets of equal length"),
        ("npz", lambda path: np.savez(path, x=X, y=Y[:50]), r"equal length, got .*\(60, 4\).*\(50,\)"),
        ("npz", lambda path: np.savez(path, a=X, b=Y), "has the arrays a, b; expected inputs and targets"),
        ("npz", lambda path: np.savez(path, x=np.array([{}], object), y=Y), "cannot be read as .npz .*allow_pickle"),
        ("npz", lambda path: path.write_bytes(b"hello"), "cannot be read as .npz"),
        ("npz", lambda path: np.savez(path, x=X, y=X[:, 0]), "too many for classes. To predict numbers, take"),
        ("npz", lambda path: np.savez(path, x=X, y=X[:, :2]), "expected one class each"),
        ("npz", lambda path: np.savez(path, x=X[:2], y=Y[:2]), "has 2 examples; at least 3"),
        (
            "npz",
            lambda path: np.savez(path, x=np.array(["a"] * 60), y=Y),
            "the inputs have the type .*expected numbers",
        ),
        (
            "npz",
            lambda path: np.savez(path, x_train=X, y_train=Y, x_test=X[:3, :2], y_test=Y[:3]),
            "the inputs of the splits differ in shape",
        ),
        ("npz", lambda path: np.savez(path, x_train=X, y_train=Y, x_test=X, y_test=Y + 5), "no example of the classes"),
        ("npz-number", lambda path: np.savez(path, x=X, y=X[:, 0] / 0), "must be finite numbers"),
        ("csv", lambda path: path.write_text("a,b,label\n1,x,0\n"), "column b: the cell is 'x', expected"),
        ("csv", lambda path: path.write_text("1,2,0\n1,nan,0\n"), "column 1: the cell is 'nan', expected"),
        ("csv", lambda path: path.write_text("1,2,0\n1,,0\n"), "line 2, column 1: the cell is empty"),
        ("csv", lambda path: path.write_text("1,,0\n1,2,0\n"), "line 1, column 1: the cell is empty"),
        ("csv", lambda path: path.write_text("1,2,0\n1,0\n"), "line 2 has 2 cells, expected 3"),
        ("csv", lambda path: path.write_text(""), "has no rows"),
        ("csv", lambda path: path.write_text("a,b\n"), "has no rows"),
        ("csv", lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot be read as a CSV file"),
        ("csv", lambda path: path.write_text("1\n2\n3\n"), "has one column"),
        ("csv", lambda path: path.write_text("a,b\n1,0\n2,\n3,1\n"), "line 3 has no label in column b"),
        ("csv", lambda path: path.write_text("1,0\n2,nan\n3,1\n"), "line 2 has no label in column 1"),
        ("csv", lambda path: path.write_text(",a,b\n0,1,0\n1,2,1\n"), "column 0 .* has no name, as an index"),
        ("csv", lambda path: path.write_text('1,0\n1,"1\n2,0\n'), "unexpected end of data"),
        ("csv", lambda path: path.write_text("x,y,label\n1,2,0\n1,2,1\n"), "has the columns y and label, each of"),
        ("csv", lambda path: path.write_text("1e39,0\n1,1\n"), "the cell is '1e39', expected a finite number"),
        ("npz", lambda path: np.savez(path, x=X, y=np.where(Y, 1, np.nan)), "targets of train are missing"),
        ("npz", lambda path: np.savez(path, x=X, y=np.array(["", "a"])[Y]), "targets of train are missing"),
        ("npz", lambda path: np.savez(path, x=X, y=Y + 0j), "the targets of train have the type complex128"),
        ("npz", lambda path: np.savez(path, x=X, y=0 * Y), "all examples have the same class"),
        ("npz", lambda path: np.savez(path, data=X, images=X, y=Y), "arrays data and images may both be the inputs"),
        ("npz", lambda path: np.savez(path, x=X, y=np.array(1)), "needs inputs and targets of equal length"),
        ("npz", lambda path: np.savez(path, x=X[:, :0], y=Y), r"train in .* is empty: .* shapes \(60, 0\)"),
        (
            "npz-number",
            lambda path: np.savez(path, x_train=X, y_train=Y, x_test=X[:0], y_test=Y[:0]),
            r"test in .* is empty: .* shapes \(0, 4\) and \(0,\)",
        ),
        (
            "npz-number",
            lambda path: np.savez(path, x_train=X, y_train=X, x_test=X, y_test=X[:, :2]),
            "the targets of the splits differ in shape",
        ),
        ("csv", lambda path: None, "there is no file or folder"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_a_file_that_cannot_be_used_is_refused_with_the_place(tmp_path, task, write, message):
    path = tmp_path / f"file.{task[:3]}"
    write(path)
    with pytest.raises(SwampError, match=message):
        problem(task, path)


@pytest.mark.parametrize("header", [["b", "a", "kind"], ["a", "c", "kind"], None])
def test_files_with_other_columns_or_another_order_are_refused(tmp_path, header):
    rows = [[1, 2, 0], [3, 4, 1]]
    csv(tmp_path / "train.csv", rows, ["a", "b", "kind"])
    csv(tmp_path / "test.csv", rows, header)
    with pytest.raises(SwampError, match=r"test.csv has the inputs .*train.csv has a, b. Give both the same columns"):
        problem("csv", tmp_path, validation=0)
    csv(tmp_path / "test.csv", [[0, 1, 2]], ["kind", "a", "b"])
    made = problem("csv", tmp_path, validation=0, text=TextOptions(label="kind"))
    assert made.task.test.inputs.tolist() == [[1, 2]]


def test_a_missing_path_a_wrong_label_and_a_folder_without_files_are_refused(tmp_path):
    with pytest.raises(SwampError, match=r"name your file or folder: --folder FILE.npz"):
        problem("npz", "")
    with pytest.raises(SwampError, match=r"needs train.csv and test.csv"):
        problem("csv", tmp_path)
    table = csv(tmp_path / "t.csv", [[1, 2, 0]] * 5, ["a", "b", "c"])
    with pytest.raises(SwampError, match="has columns a, b, c; there is no column 'd' for --label"):
        problem("csv", table, text=TextOptions(label="d"))
