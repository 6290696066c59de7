"""Your own numbers: arrays of NumPy in .npz files, and tables in CSV files."""

import csv
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from swamp.datasets.problem import DataOptions, Normalise, Problem, split
from swamp.datasets.text.corpus import scalar_output
from swamp.errors import SwampError, shortened
from swamp.training.data import TensorData
from swamp.training.metrics import REGRESSION, mean_output, rmse, unexplained_variance
from swamp.training.rng import Seed
from swamp.training.task import Task

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""Inputs (n, ...) and targets (n,) or (n, k)."""

_TEST_SHARE = 0.2
_LARGEST = float(np.finfo(np.float32).max)
_SPLITS = {"train": "train", "training": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_INPUTS = ("inputs", "input", "x", "data", "images", "features")
_TARGETS = ("targets", "target", "y", "labels", "label", "classes")


def npz(options: DataOptions, seed: Seed) -> Problem:
    """Your own arrays, --folder FILE.npz with inputs and classes (or x and y; x_train, x_test ...).

    A folder has train.npz, test.npz and, if you like, val.npz. Without test arrays, a fifth of the examples is drawn
    for the test, the same for all seeds. Images are (n, H, W, C) or (n, C, H, W); of uint8 also (n, H, W).
    Raises SwampError for missing, unequal or pickled arrays.
    """
    return class_problem(*_parts("npz", ".npz", options, _read_npz), options, seed, Normalise((0.0,), (1.0,)))


def npz_number(options: DataOptions, seed: Seed) -> Problem:
    """Your own arrays as for npz; the targets are numbers to predict, (n,) or (n, k), by least squares."""
    return number_problem(*_parts("npz-number", ".npz", options, _read_npz), options, seed)


def csv_table(options: DataOptions, seed: Seed) -> Problem:
    """Your own table of numbers, --folder FILE.csv; --label names the column of the class.

    Without --label it is the column named target, label ..., or the last one. The first line may have the names of the
    columns. A folder has train.csv, test.csv and, if you like, val.csv. Inputs are standardised by the training
    examples. Raises SwampError for cells that are no numbers, with line and column.
    """
    return class_problem(*_parts("csv", ".csv", options, _csv_reader(options)), options, seed)


def csv_number(options: DataOptions, seed: Seed) -> Problem:
    """Your own table as for csv; the column that --label names is a number to predict, by least squares."""
    return number_problem(*_parts("csv-number", ".csv", options, _csv_reader(options)), options, seed)


@dataclass(frozen=True)
class Standardise:
    """(n, ...): minus the mean, divided by the standard deviation of each feature or channel."""

    mean: Tensor
    std: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """The standardised inputs."""
        return (inputs - self.mean.to(inputs.device)) / self.std.to(inputs.device)


def _parts(
    task: str, ending: str, options: DataOptions, read: Callable[[Path], Mapping[str, Arrays]]
) -> tuple[str, dict[str, Arrays]]:
    """Task, and the arrays of train, test and, if there is one, val."""
    if not options.folder:
        raise SwampError(f"{task}: name your file or folder: --folder FILE{ending}")
    path = Path(options.folder).expanduser()
    if path.is_dir():
        files = {name: path / f"{name}{ending}" for name in ("train", "test", "val")}
        files = {name: file for name, file in files.items() if file.is_file()}
        if not {"train", "test"} <= files.keys():
            raise SwampError(f"{task}: the folder {path} needs train{ending} and test{ending}; or name one file.")
        parts = {name: read(file)["train"] for name, file in files.items()}
    elif path.is_file():
        parts = dict(read(path))
    else:
        raise SwampError(f"{task}: there is no file or folder {path}.")
    for part, arrays in parts.items():
        if not all(array.size for array in arrays):
            sizes = " and ".join(str(array.shape) for array in arrays)
            raise SwampError(f"{task}: {part} in {path} is empty: its inputs and targets have the shapes {sizes}.")
    if "test" not in parts:
        if len(parts["train"][1]) < 3:
            raise SwampError(f"{task}: {path} has {len(parts['train'][1])} examples; at least 3 are needed.")
        parts |= with_test(task, *parts["train"])
    shapes = {name: inputs.shape[1:] for name, (inputs, _) in parts.items()}
    if len(set(shapes.values())) > 1:
        raise SwampError(f"{task}: the inputs of the splits differ in shape: {shapes}.")
    return task, parts


def with_test(task: str, inputs: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> dict[str, Arrays]:
    """Training and test arrays: a fifth of the examples is drawn for the test, the same for all seeds."""
    order = torch.randperm(len(targets), generator=Seed(0).at(task, "test").generator()).numpy()
    tests = max(1, int(_TEST_SHARE * len(targets)))
    test, train = order[:tests], order[tests:]
    return {"train": (inputs[train], targets[train]), "test": (inputs[test], targets[test])}


def _read_npz(path: Path) -> dict[str, Arrays]:
    found: dict[str, dict[str, Any]] = {}
    taken: dict[tuple[str, str], list[str]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(cast("Sequence[str]", file.files))
            for name in names:
                part, kind = _kind(name)
                if kind:
                    taken.setdefault((part, kind), []).append(name)
                    found.setdefault(part, {})[kind] = np.atleast_1d(file[name])
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise SwampError(
            f"{path} cannot be read as .npz ({error}). Write it with numpy.savez(path, inputs=..., targets=...), with "
            "arrays of numbers."
        ) from error
    for (part, kind), several in taken.items():
        if len(several) > 1:
            raise SwampError(
                f"{path}: the arrays {' and '.join(several)} may both be the {kind} of {part}. Keep one of them."
            )
    for part, arrays in found.items():
        if len(arrays) < 2 or len(arrays["inputs"]) != len(arrays["targets"]):
            sizes = {kind: array.shape for kind, array in arrays.items()}
            raise SwampError(f"{path}: {part} needs inputs and targets of equal length, got {sizes}.")
    if "train" not in found:
        raise SwampError(
            f"{path} has the arrays {shortened(names)}; expected inputs and targets, or x and y; or x_train, y_train, "
            "x_test and y_test."
        )
    return {part: (arrays["inputs"], arrays["targets"]) for part, arrays in found.items()}


def _kind(name: str) -> tuple[str, str]:
    """Split, and inputs or targets (empty: neither), of the name of an array."""
    words = [word for word in re.split(r"[_\-. ]", name.lower()) if word]
    part = next((_SPLITS[word] for word in words if word in _SPLITS), "train")
    rest = "".join(word for word in words if word not in _SPLITS)
    return part, "inputs" if rest in _INPUTS else "targets" if rest in _TARGETS else ""


def _csv_reader(options: DataOptions) -> Callable[[Path], dict[str, Arrays]]:
    if options.text.columns:
        raise SwampError("the tasks csv and csv-number use all columns but the label. Leave columns out.")

    first_file: list[tuple[Path, list[str]]] = []

    def read(path: Path) -> dict[str, Arrays]:
        header, rows = _rows(path, options.text.label)
        place = _label_place(path, header, len(rows[0]), options.text.label)
        kept = [column for column in range(len(rows[0])) if column != place]
        if not kept:
            raise SwampError(f"{path} has one column; expected inputs and a label.")
        names = [header[column].strip() for column in kept if header]
        first_file.append((path, names))
        if names != first_file[0][1]:
            raise SwampError(
                f"{path} has the inputs {shortened(names) or '(no header)'}, and {first_file[0][0]} has "
                f"{shortened(first_file[0][1]) or '(no header)'}. Give both the same columns in the same order."
            )
        first = 2 if header else 1
        inputs = [
            [_cell(path, first + number, header, column, row[column]) for column in kept]
            for number, row in enumerate(rows)
        ]
        for number, row in enumerate(rows):
            if row[place].strip().lower() in ("", "nan"):
                raise SwampError(
                    f"{path}, line {first + number} has no label in column {header[place] if header else place}."
                )
        return {"train": (np.asarray(inputs, np.float32), _column([row[place] for row in rows]))}

    return read


def _rows(path: Path, label: str) -> tuple[list[str], list[list[str]]]:
    """The header, empty if the first line is an example, and the other lines."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            # Strict: a quotation mark that is never closed would make one cell of all that follows.
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SwampError(
            f"{path} cannot be read as a CSV file ({error}); expected a complete file in UTF-8."
        ) from error
    if not rows:
        raise SwampError(f"{path} has no rows.")
    width = len(rows[0])
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        if width == 1 and sign in rows[0][0]:
            raise SwampError(f"{path} has {name} between its cells; separate them with commas.")
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise SwampError(f"{path}, line {number} has {len(row)} cells, expected {width}.")
    header = rows.pop(0) if _is_header(rows, label) else []
    if not rows:
        raise SwampError(f"{path} has no rows.")
    if not all(name.strip() for name in header):
        raise SwampError(
            f"{path}: column {[bool(name.strip()) for name in header].index(False)} (from 0) has no name, as an index "
            "that pandas wrote. Remove it (to_csv(index=False)), or name it."
        )
    return header, rows


def _is_header(rows: Sequence[Sequence[str]], label: str) -> bool:
    """Whether the first line has the names of the columns, some of which may be numbers, such as wavelengths."""
    first, *others = rows
    named = [place for place, name in enumerate(first) if not _is_number(name)]
    if not named:  # as pandas names the columns of an array
        return len(first) > 2 and list(first) == [str(place) for place in range(len(first))]
    usual = (*_TARGETS[:5], "class", label.lower() or "class")
    # A name stands in the first line only; y and n may be classes.
    labels = [place for place in named if first[place].strip().lower() in usual]
    labels = [place for place in labels if all(row[place] != first[place] for row in others)]
    last = named == [len(first) - 1] and bool(others) and all(_is_number(row[-1]) for row in others)
    return len(named) == len(first) or bool(labels) or last


def _label_place(path: Path, header: Sequence[str], width: int, label: str) -> int:
    names = [name.strip() for name in header]
    if label:
        if names.count(label) > 1:
            raise SwampError(f"{path} has {names.count(label)} columns {label!r}. Rename the others than the label.")
        if label in names:
            return names.index(label)
        if label.isdecimal() and not header and int(label) < width:
            return int(label)
        have = (
            f"columns {shortened(names, 20)}" if header else f"no header; name a column by its number, 0 to {width - 1}"
        )
        raise SwampError(f"{path} has {have}; there is no column {label!r} for --label.")
    usual = [place for place, name in enumerate(names) if name.lower() in _TARGETS[:5]]
    if len(usual) > 1:
        found = " and ".join(names[place] for place in usual)
        raise SwampError(f"{path} has the columns {found}, each of which may be the label. Name it: --label NAME.")
    return usual[0] if usual else width - 1


def _cell(path: Path, line: int, header: Sequence[str], column: int, text: str) -> float:
    if not _is_number(text) or not abs(float(text)) <= _LARGEST:
        name = header[column] if header else column
        what = "is empty" if not text.strip() else f"is {text.strip()[:40]!r}"
        raise SwampError(
            f"{path}, line {line}, column {name}: the cell {what}, expected a finite number. Encode "
            "categories as numbers, and fill in missing values."
        )
    return float(text)


def _column(cells: Sequence[str]) -> np.ndarray[Any, Any]:
    if all(map(_is_number, cells)):
        return np.asarray([float(cell) for cell in cells])
    return np.asarray([cell.strip() for cell in cells])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def class_problem(
    task: str,
    parts: Mapping[str, Arrays],
    options: DataOptions,
    seed: Seed,
    pixels: Normalise | None = None,
    axes: tuple[int, ...] = (0,),
) -> Problem:
    """The problem of arrays with classes. axes: of the inputs, over which their mean and deviation are taken."""
    for part, (_, targets) in parts.items():
        if targets.dtype.kind not in "fiubUS":
            raise SwampError(f"{task}: the targets of {part} have the type {targets.dtype}, expected numbers or text.")
        missing = targets == targets.dtype.type() if targets.dtype.kind in "US" else ~np.isfinite(targets)
        if count := int(missing.sum()):
            raise SwampError(
                f"{task}: {count} of {len(targets)} targets of {part} are missing: empty, NaN or infinite."
            )
    names = np.unique(np.concatenate([targets.reshape(-1) for _, targets in parts.values()]))
    first = parts["train"][1]
    if first.ndim > 1 and first.shape[1:] != (1,):
        raise SwampError(f"{task}: the targets have the shape {first.shape}, expected one class each. {_INSTEAD}")
    fractions = names.dtype.kind == "f" and not bool((names == np.round(names)).all())
    if fractions or len(names) > max(20, len(first) // 2):
        raise SwampError(f"{task}: the targets have {len(names)} different values, too many for classes. {_INSTEAD}")
    known = np.unique(first)
    if len(known) < len(names):
        missing = shortened([str(name) for name in names if name not in known])
        raise SwampError(f"{task}: the training data have no example of the classes {missing}.")
    sets = {
        name: TensorData(_inputs(inputs), torch.from_numpy(np.searchsorted(names, targets.reshape(-1))).long())  # pyright: ignore[reportUnknownMemberType]
        for name, (inputs, targets) in parts.items()
    }
    return _problem(sets, len(names), options, seed, pixels, Task, axes)


_INSTEAD = "To predict numbers, take the task npz-number or csv-number."


def number_problem(task: str, parts: Mapping[str, Arrays], options: DataOptions, seed: Seed) -> Problem:
    """The problem of arrays with numbers to predict."""
    sets: dict[str, TensorData] = {}
    for name, (inputs, targets) in parts.items():
        if targets.dtype.kind not in "fiub" or not bool(np.isfinite(targets).all()):
            raise SwampError(f"{task}: the targets of {name} must be finite numbers. Remove the other examples.")
        values = torch.as_tensor(targets.astype(np.float32))
        sets[name] = TensorData(_inputs(inputs), values.flatten() if values[0].numel() == 1 else values)
    shapes = {name: tuple(data.targets.shape[1:]) for name, data in sets.items()}
    if len(set(shapes.values())) > 1:
        raise SwampError(f"{task}: the targets of the splits differ in shape: {shapes}.")
    outputs = sets["train"].targets[0].numel()

    def build(*data: Any) -> Task:
        common: dict[str, Any] = {"loss": F.mse_loss, "error": unexplained_variance, "combine": mean_output}
        if outputs == 1:
            return Task(*data, metrics=dict(REGRESSION), forward=scalar_output, **common)
        return Task(*data, metrics={"rmse": rmse}, **common)

    return _problem(sets, outputs, options, seed, Normalise((0.0,), (1.0,)), build)


def _inputs(array: np.ndarray[Any, Any]) -> Tensor:
    """float32, or uint8 images with channels first."""
    if array.dtype.kind not in "fiub":
        raise SwampError(f"the inputs have the type {array.dtype}, expected numbers.")
    if array.dtype == np.uint8 and array.ndim == 3:
        return torch.from_numpy(array[:, None].copy())  # pyright: ignore[reportUnknownMemberType]
    if array.ndim == 4:
        last = array.shape[-1] in (1, 3, 4) and array.shape[1] not in (1, 3, 4)
        array = array.transpose(0, 3, 1, 2) if last else array
    if array.ndim == 4 and array.dtype == np.uint8:
        return torch.from_numpy(array.copy())  # pyright: ignore[reportUnknownMemberType]
    values = torch.as_tensor(array.astype(np.float32))
    return values[:, None] if values.dim() == 1 else values


def _problem(
    sets: Mapping[str, TensorData],
    outputs: int,
    options: DataOptions,
    seed: Seed,
    pixels: Normalise | None,
    build: Callable[..., Task],
    axes: tuple[int, ...] = (0,),
) -> Problem:
    separate = "val" in sets
    fitted, drawn = split(sets["train"], replace(options, validation=0.0) if separate else options, seed)
    held_out = sets["val"] if separate else drawn
    inputs = cast(Tensor, fitted.inputs)
    normalise: Any = None
    if inputs.dtype == torch.uint8:
        normalise = pixels
    elif inputs.dim() == 2 or len(axes) > 1:
        std = inputs.std(axes, correction=0, keepdim=True)
        normalise = Standardise(inputs.mean(axes, keepdim=True), torch.where(std > 0, std, 1.0))
    data = [None if one is None else replace(one, normalise=normalise) for one in (fitted, sets["test"], held_out)]
    return Problem(build(*data), tuple(inputs.shape[1:]), outputs, available=len(sets["train"]))
